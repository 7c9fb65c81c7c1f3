"""What captured passes compute, with the capture replaced by a plain call: no GPU is needed, and none is tested."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from pvlm_backends.raw import draft, graphs
from pvlm_backends.raw.attention import AnswerAttention, PromptAttention
from pvlm_backends.raw.backend import TorchBackend
from pvlm_backends.raw.cache import KeyValueCache, Part, Rows
from pvlm_backends.raw.decoder import Decoder
from pvlm_backends.raw.draft import CapturedDrafting
from pvlm_backends.raw.graphs import SIZES, CapturedPasses
from pvlm_backends.raw.session import TorchSession
from pvlm_protocols.backend import Backend, Prompt
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE
from tests.support.checkpoints import random_frames

LOAD = Callable[[str, str], Backend]
PROMPT_ROWS, CAPACITY = 37, 24


class Recorded:
    """Stands for a capture: counts, and runs once beforehand as a warm-up does."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.captures += 1
        run()
        return run


class Pair:
    """A session's passes, captured and plain, after the same random prompt."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.capture = Recorded()
        self.rotations = decoder.rotations(torch.arange(PROMPT_ROWS + CAPACITY)[None])
        self.plain_cache, cache = (
            KeyValueCache(decoder.config, PROMPT_ROWS + CAPACITY, decoder.dtype, decoder.layer_devices)
            for _ in range(2)
        )
        prompt = decoder.embed(torch.arange(PROMPT_ROWS) + 100)
        for filled in (self.plain_cache, cache):
            attention = PromptAttention([Rows(filled, PROMPT_ROWS)]).piece(0, 0, PROMPT_ROWS)
            decoder.forward(prompt.clone(), self.rotations[:PROMPT_ROWS], attention)
        answer = self.rotations[PROMPT_ROWS:]
        self.captured = CapturedPasses(decoder, [Rows(cache, PROMPT_ROWS)], answer, CAPACITY, self.capture)

    def plain(self, tokens: list[int], length: int) -> torch.Tensor:
        row = PROMPT_ROWS + length
        attention = AnswerAttention(Part((Rows(self.plain_cache, row),), len(tokens)))
        rotation = self.rotations[row : row + len(tokens)]
        return self.decoder.logits(self.decoder.forward(self.decoder.embed(torch.tensor(tokens)), rotation, attention))

    def check(self, tokens: list[int], length: int) -> None:
        found = self.captured.extend(tokens, length)
        assert found is not None
        torch.testing.assert_close(found, self.plain(tokens, length), rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["target", "draft", "ungrouped"])
def pair(request: pytest.FixtureRequest, load_backend: LOAD) -> Pair:
    backend = load_backend("torch", request.param)
    assert isinstance(backend, TorchBackend)
    assert backend._decoder is not None
    with torch.inference_mode():
        return Pair(backend._decoder)


@torch.inference_mode()
def test_passes_of_every_length_give_the_logits_of_plain_ones(pair: Pair) -> None:
    pair.check([11], 0)
    pair.check([7, 29, 300], 1)  # padded to four: the fourth row is written again by the next pass
    pair.check([17, 5, 42, 600, 3], 4)
    pair.check([8, 9], 2)  # after a rollback: rows 4 to 8 still hold what was rejected
    pair.check([12], 4)


@torch.inference_mode()
def test_each_size_is_captured_once(pair: Pair) -> None:
    for length, count in enumerate([1, 1, 3, 4, 4, 3, 2, 2]):
        pair.check(list(range(50, 50 + count)), length)
    assert pair.capture.captures == 3  # 1, 2 and 4


@torch.inference_mode()
def test_capturing_in_the_middle_of_an_answer_disturbs_nothing(pair: Pair) -> None:
    answer = list(range(200, 200 + CAPACITY - 2))
    for length in range(0, len(answer), 2):
        pair.check(answer[length : length + 2], length)
    pair.check([77], len(answer))  # captured only now: its warm-up wrote the last row, which is free
    pair.check([78], len(answer) + 1)


@torch.inference_mode()
def test_what_does_not_fit_is_left_to_a_plain_pass(pair: Pair) -> None:
    assert pair.captured.extend([5] * (SIZES[-1] + 1), 0) is None
    assert pair.captured.extend([5] * 3, CAPACITY - 3) is None  # padded it would take four rows
    assert pair.captured.extend([5] * 2, CAPACITY - 2) is not None


class Steps(Recorded):
    """Counts what is launched. A draft's step writes where it reads."""

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.launched = 0
        for _ in range(3):  # as a warm-up: the third would be out of the cache, did it go on where the second ended
            run()

        def launch() -> torch.Tensor:
            self.launched += 1
            return run()

        return launch


@pytest.fixture(params=[0.0, float("inf")], ids=["step by step", "ahead"])
def drafting(request: pytest.FixtureRequest, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> CapturedDrafting:
    monkeypatch.setattr(draft, "AHEAD_BELOW_S", request.param)
    pair.captured.capture = Steps()
    with torch.inference_mode():
        return CapturedDrafting(pair.captured, 600)


def greedy(pair: Pair, tokens: list[int], length: int, count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(pair.plain(tokens, length)[-1, :600].argmax()))
        tokens, length = found[-1:], length + len(tokens)
    return found


@torch.inference_mode()
def test_a_captured_window_is_greedy_decoding(pair: Pair, drafting: CapturedDrafting) -> None:
    def drafted(tokens: list[int], length: int, count: int) -> list[int]:
        return list(drafting.draft(tokens, length, count) or [])

    window = drafted([11], 0, 5)
    assert window == greedy(pair, [11], 0, 5)
    assert drafted(window[-1:], 5, 1) == greedy(pair, window[-1:], 5, 1)
    # Rejected at its third token, of which nothing must be left; and then several tokens come at once.
    assert drafted([7], 3, 4) == greedy(pair, [7], 3, 4)
    rest = CAPACITY - 7
    assert drafted([9, 8], 5, rest) == greedy(pair, [9, 8], 5, rest)
    pair.check([12], 9)
    assert drafting.draft([5] * (SIZES[-1] + 1), 0, 2) is None


@torch.inference_mode()
def test_capturing_a_window_in_the_middle_of_an_answer_disturbs_nothing(pair: Pair, drafting: CapturedDrafting) -> None:
    pair.check([11, 7, 29, 300], 0)
    assert list(drafting.draft([17], 4, 5) or []) == greedy(pair, [17], 4, 5)


@torch.inference_mode()
def test_a_step_that_was_launched_ahead_is_used_if_the_draft_goes_on(pair: Pair, drafting: CapturedDrafting) -> None:
    ahead = draft.AHEAD_BELOW_S > 0
    expected = greedy(pair, [11], 0, 9)
    first = drafting.draft([11], 0, 9)
    assert first is not None
    found = [next(first) for _ in range(4)]
    first.close()
    capture = pair.captured.capture
    assert isinstance(capture, Steps)
    assert capture.launched == (5 if ahead else 4)  # the pass over the first token, and steps
    found += drafting.draft(found[-1:], 4, 5) or []
    assert found == expected
    assert capture.launched == 9  # ahead: four steps more; else a pass, and four steps
    # Passes that are not captured write the same rows, and a step from before them counts no more.
    again = drafting.draft([11], 0, 9)
    assert again is not None
    last = [next(again) for _ in range(4)][-1:]
    assert drafting.draft([5] * (SIZES[-1] + 1), 0, 2) is None
    before = capture.launched
    assert list(drafting.draft(last, 4, 1) or []) == expected[4:5]
    assert capture.launched == before + 1
    # A rollback to just before the step in flight: what it wrote is not taken for another token's.
    again = drafting.draft([11], 0, 9)
    assert again is not None
    assert [next(again) for _ in range(2)] == expected[:2]
    assert list(drafting.draft([expected[1] + 1], 2, 3) or []) == greedy(pair, [expected[1] + 1], 2, 3)


def open_session(backend: Backend, compact_positions: bool = False) -> TorchSession:
    session = backend.open(Prompt("What happens?", random_frames(2, IMAGE_SIZE, IMAGE_SIZE)), CAPACITY)
    assert isinstance(session, TorchSession)
    session.prefill(torch.arange(session.video_tokens) % 3 == 0, compact_positions=compact_positions)
    return session


@pytest.mark.parametrize("compact_positions", [False, True])
def test_a_session_that_captures_answers_as_one_that_does_not(
    load_backend: LOAD, monkeypatch: pytest.MonkeyPatch, compact_positions: bool
) -> None:
    capture = Recorded()
    monkeypatch.setattr(graphs, "capture_graph", lambda device: capture)
    plain, capturing = (open_session(load_backend("torch", "untied"), compact_positions) for _ in range(2))
    capturing._capturing = True
    for tokens, keep in (([11], 1), ([7, 29, 300], 2), ([17, 5], 4), ([3] * (CAPACITY - 4), 4)):
        torch.testing.assert_close(capturing.extend(tokens), plain.extend(tokens), rtol=1e-4, atol=1e-4)
        capturing.truncate(keep)
        plain.truncate(keep)
    windows = [list(session.draft([11, 7], 5, vocab_limit=600)) for session in (capturing, plain)]
    assert windows[0] == windows[1]
    assert capturing.length == plain.length == 10
    assert capture.captures == 4
    windows = [list(session.draft(windows[0][-1:], 5, vocab_limit=300)) for session in (capturing, plain)]
    assert windows[0] == windows[1]
    assert max(windows[0]) < 300


def test_a_step_that_was_launched_ahead_is_forgotten_when_other_tokens_take_its_place(
    load_backend: LOAD, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "capture_graph", lambda device: Recorded())
    monkeypatch.setattr(draft, "AHEAD_BELOW_S", math.inf)
    plain, capturing = (open_session(load_backend("torch", "untied")) for _ in range(2))
    capturing._capturing = True
    before, after = [], []
    for session in (plain, capturing):
        window = session.draft([11], 9, vocab_limit=600)
        found = [next(window) for _ in range(4)]
        before.append(list(window))
        session.truncate(1)
        window = session.draft(found[:1], 8, vocab_limit=600)
        assert [next(window) for _ in range(3)] == found[1:]
        window.close()  # the last one is already in flight, and its predecessors are replaced now
        session.truncate(1)
        session.extend([300, 5, 42])
        after.append(list(session.draft(found[-1:], 5, vocab_limit=600)))
    assert before[0] == before[1]
    assert after[0] == after[1] != before[0]


def test_a_session_that_cannot_capture_says_so_and_goes_on(load_backend: LOAD, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "capture_graph", lambda device: fail)
    plain, capturing = (open_session(load_backend("torch", "untied")) for _ in range(2))
    capturing._capturing = True
    with pytest.warns(RuntimeWarning, match="not captured as CUDA graphs: operation not permitted"):
        torch.testing.assert_close(capturing.extend([11, 7]), plain.extend([11, 7]))
    torch.testing.assert_close(capturing.extend([5]), plain.extend([5]))
