"""What every backend must do, whatever model it runs.

A plug-in's own tests subclass `BackendContract` and define two fixtures::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self): return MyBackend.load(LoadOptions("path/to/checkpoint"))

        @pytest.fixture
        def prompt(self): ...  # a Prompt with frames, as the backend's processor resizes them
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import pytest
import torch

from pvlm_protocols.backend import (
    Backend,
    BackendError,
    EarlyStates,
    FramesMissing,
    GreedyDrafting,
    InterruptibleOpening,
    Prompt,
    PromptError,
    Session,
    SharedPasses,
    SteppedPrefill,
    Turn,
    Visual,
)
from pvlm_protocols.branches import Branches, BranchPasses
from pvlm_protocols.prefixes import KeptPrefix, KeptPrefixes, PrefixSession

CAPACITY = 12
TOKENS = [11, 7, 29, 3, 17, 5]
TOLERANCE = 1e-4
"""Between passes of different shapes over the same tokens, in float32."""


class _Cancelled(Exception):
    pass


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=TOLERANCE, atol=TOLERANCE)


class BackendContract:
    """Inherit, and define the fixtures ``backend`` and ``prompt``."""

    @pytest.fixture
    def session(self, backend: Backend, prompt: Prompt) -> Session:
        return backend.open(prompt, CAPACITY)

    def test_it_describes_itself(self, backend: Backend) -> None:
        info = backend.info
        assert info.vocab_size > max(info.end_token_ids) >= 0
        assert info.tokenizer_fingerprint
        assert min(info.layers, info.hidden_size, info.max_positions, info.parameters) > 0
        assert (info.dtype, info.device) == ("float32", "cpu")

    def test_prefill_gives_the_last_position_s_logits(self, backend: Backend, session: Session) -> None:
        assert 0 < session.video_tokens < session.prompt_tokens
        logits = session.prefill()
        assert logits.shape == (backend.info.vocab_size,)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        assert session.length == 0

    def test_an_opening_in_steps_is_the_same_and_can_be_ended(self, backend: Backend, prompt: Prompt) -> None:
        if not isinstance(backend, InterruptibleOpening):
            pytest.skip("it opens in one step")
        steps: list[None] = []
        session = backend.open_in_steps(prompt, CAPACITY, lambda: steps.append(None))
        assert steps
        close(session.prefill(), backend.open(prompt, CAPACITY).prefill())

        def cancel() -> None:
            raise _Cancelled

        with pytest.raises(_Cancelled):
            backend.open_in_steps(prompt, CAPACITY, cancel)

    def test_extend_gives_a_row_for_each_token(self, backend: Backend, session: Session) -> None:
        session.prefill()
        logits = session.extend(TOKENS)
        assert logits.shape == (len(TOKENS), backend.info.vocab_size)
        assert logits.dtype == torch.float32
        assert session.length == len(TOKENS)

    def test_one_by_one_or_all_at_once(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        session.prefill()
        together = session.extend(TOKENS).clone()
        other = backend.open(prompt, CAPACITY)
        other.prefill()
        close(torch.cat([other.extend([token]).clone() for token in TOKENS]), together)

    def test_truncate_is_the_whole_of_rollback(self, session: Session) -> None:
        session.prefill()
        before = session.extend(TOKENS).clone()
        session.truncate(2)
        assert session.length == 2
        session.extend([30, 31])  # another answer
        session.truncate(2)
        close(session.extend(TOKENS[2:]), before[2:])
        session.truncate(0)
        close(session.extend(TOKENS), before)

    def test_truncate_takes_no_length_that_is_not_there(self, session: Session) -> None:
        session.prefill()
        session.extend(TOKENS[:3])
        for length in (-1, 4):
            with pytest.raises(ValueError, match=str(length)):
                session.truncate(length)
        session.truncate(3)
        assert session.length == 3

    def test_logits_may_be_written_to(self, session: Session) -> None:
        session.prefill().div_(2)
        session.extend(TOKENS).div_(2)

    def test_interleaved_sessions_do_not_disturb_each_other(self, backend: Backend, prompt: Prompt) -> None:
        prompts = [prompt, dataclasses.replace(prompt, question="And then, what else?")]

        def run(session: Session) -> list[torch.Tensor]:
            return [session.prefill().clone(), *(session.extend([token]).clone() for token in TOKENS)]

        alone = [run(backend.open(prompt, CAPACITY)) for prompt in prompts]
        assert not torch.allclose(alone[0][0], alone[1][0])
        sessions = [backend.open(prompt, CAPACITY) for prompt in prompts]
        mixed = [[session.prefill().clone()] for session in sessions]
        for token in TOKENS:
            for session, rows in zip(sessions, mixed, strict=True):
                rows.append(session.extend([token]).clone())
        for left, right in zip(alone, mixed, strict=True):
            close(torch.cat([row.flatten() for row in right]), torch.cat([row.flatten() for row in left]))

    def test_keeping_every_token_is_not_pruning(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        everything = torch.ones(session.video_tokens, dtype=torch.bool)
        whole = session.prefill().clone()
        for compact in (False, True):
            close(backend.open(prompt, CAPACITY).prefill(everything, compact_positions=compact), whole)

    def test_pruning_leaves_the_answer_s_lengths_alone(self, session: Session) -> None:
        keep = torch.zeros(session.video_tokens, dtype=torch.bool)
        keep[::3] = True
        prompt_tokens = session.prompt_tokens
        session.prefill(keep)
        before = session.extend(TOKENS).clone()
        assert (session.length, session.prompt_tokens) == (len(TOKENS), prompt_tokens)
        session.truncate(1)
        close(session.extend(TOKENS[1:]), before[1:])

    def test_a_mask_of_another_shape_is_refused(self, session: Session) -> None:
        for keep in (torch.ones(session.video_tokens + 1, dtype=torch.bool), torch.ones(session.video_tokens)):
            with pytest.raises(ValueError, match=str(session.video_tokens)):
                session.prefill(keep)

    def test_early_states_come_between_two_layers(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        untapped = backend.open(prompt, CAPACITY).prefill().clone()
        events: list[str] = []
        states: list[EarlyStates] = []

        def on_early_layer(found: EarlyStates) -> None:
            states.append(found)
            events.append("early")

        logits = session.prefill(
            early_layer=1, on_early_layer=on_early_layer, on_progress=lambda: events.append("progress")
        ).clone()
        assert events.count("early") == 1
        after = events[events.index("early") :]
        assert after.count("progress") >= backend.info.layers - 1
        assert events.count("progress") >= backend.info.layers
        found = states[0]
        assert found.layer == 1
        assert session.video_tokens % found.frames == 0
        for video, question in ((found.video_first, found.question_first), (found.video_last, found.question_last)):
            assert video.shape == (session.video_tokens, backend.info.hidden_size)
            assert question.ndim == 2
            assert 0 < len(question) < session.prompt_tokens - session.video_tokens
            assert question.shape[1] == backend.info.hidden_size
        close(logits, untapped)

    def test_early_attention_comes_if_it_is_asked_for(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        states: list[EarlyStates] = []
        logits = session.prefill(early_layer=1, on_early_layer=states.append, early_attention=True).clone()
        without = backend.open(prompt, CAPACITY).prefill(early_layer=1, on_early_layer=states.append)
        close(logits, without)
        attention = states[0].attention
        assert attention is not None
        assert attention.shape == (session.video_tokens,)
        assert attention.dtype == torch.float32
        assert 0 < float(attention.sum()) < 1
        assert float(attention.min()) >= 0
        assert attention.add_(1).isfinite().all()  # it is the receiver's
        assert states[1].attention is None

    def test_early_states_belong_to_their_receiver(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        def spoil(states: EarlyStates) -> None:
            for tensor in (states.video_first, states.video_last, states.question_first, states.question_last):
                tensor.zero_()

        untapped = backend.open(prompt, CAPACITY).prefill().clone()
        logits = session.prefill(early_layer=1, on_early_layer=spoil)
        close(logits, untapped)

    def test_an_early_layer_that_is_none_is_refused(self, backend: Backend, session: Session) -> None:
        for layer in (None, 0, backend.info.layers + 1):
            with pytest.raises(ValueError, match="early_layer"):
                session.prefill(early_layer=layer, on_early_layer=lambda _: None)

    @pytest.mark.parametrize("where", ["progress", "early"])
    def test_a_cancelled_prefill_leaves_everything_usable(
        self, backend: Backend, prompt: Prompt, session: Session, where: str
    ) -> None:
        def cancel(*_: object) -> None:
            raise _Cancelled

        expected = backend.open(prompt, CAPACITY).prefill().clone()
        arguments: dict[str, Any] = {
            "progress": {"on_progress": cancel},
            "early": {"early_layer": 1, "on_early_layer": cancel},
        }[where]
        with pytest.raises(_Cancelled):
            session.prefill(**arguments)
        close(backend.open(prompt, CAPACITY).prefill(), expected)
        close(session.prefill(), expected)

    def test_a_prefill_in_steps_lets_others_pass(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        stepped, other = _stepped(backend.open(prompt, CAPACITY)), backend.open(prompt, CAPACITY)
        expected = [session.prefill(), *session.extend(TOKENS[:4])]
        other.prefill()
        fed: list[torch.Tensor] = []
        found: torch.Tensor | None = None
        for found in stepped.prefill_steps():
            if found is None and len(fed) < 4:
                fed.append(other.extend(TOKENS[len(fed) : len(fed) + 1])[0].clone())
        assert found is not None
        close(found, expected[0])
        for one, row in zip(fed, expected[1:], strict=False):
            close(one, row)
        close(stepped.extend(TOKENS[:4]), torch.stack(expected[1:]))

    def test_a_prefill_that_was_left_may_be_started_again(
        self, backend: Backend, prompt: Prompt, session: Session
    ) -> None:
        stepped = _stepped(backend.open(prompt, CAPACITY))
        if next(steps := stepped.prefill_steps()) is not None:
            pytest.skip("this backend's prefill is one piece")
        del steps
        close(stepped.prefill(), session.prefill())

    def test_an_abandoned_pass_leaves_everything_as_it_was(
        self, backend: Backend, prompt: Prompt, session: Session
    ) -> None:
        """Wherever it is left; a backend whose pass is one call has no such place."""
        other = backend.open(prompt, CAPACITY)
        other.prefill()
        expected = other.extend(TOKENS).clone()
        session.prefill()
        session.extend(TOKENS[:2])
        for place in range(backend.info.layers + 1):
            places = iter(range(place))

            def leave(places: Iterator[int] = places) -> None:
                if next(places, None) is None:
                    raise _Cancelled

            try:
                session.extend([30, 31, 32], on_progress=leave)
            except _Cancelled:
                assert session.length == 2
            session.truncate(2)
        close(session.extend(TOKENS[2:], on_progress=lambda: None), expected[2:])

    def test_drafting_is_greedy_decoding(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        """With ids that do not exist, several tokens to begin with, and what is left in the middle taken up again."""
        other, limit = backend.open(prompt, CAPACITY), backend.info.vocab_size // 2
        drafting = _drafting(session)
        session.prefill()
        other.prefill()
        expected: list[int] = []
        logits = other.extend(TOKENS[:3])
        for _ in range(CAPACITY - 3):
            expected.append(int(logits[-1, :limit].argmax()))
            logits = other.extend(expected[-1:])
        expected.append(int(logits[-1, :limit].argmax()))
        found = []
        for token in drafting.draft(TOKENS[:3], CAPACITY - 2, vocab_limit=limit):
            assert session.length == 3 + len(found)
            found.append(token)
            if len(found) == 4:
                break
        assert found == expected[:4]
        session.truncate(4)
        found = [*found[:2], *drafting.draft(found[1:2], CAPACITY - 4, vocab_limit=limit)]
        assert found == expected
        assert session.length == CAPACITY
        session.truncate(5)
        close(session.extend(expected[2:4]), logits_of(other, expected[2:4], 5))

    def test_drafting_ends_where_progress_raises(self, session: Session) -> None:
        drafting = _drafting(session)
        session.prefill()
        (first,) = drafting.draft([11], 1, vocab_limit=100)

        def cancel() -> None:
            raise _Cancelled

        with pytest.raises(_Cancelled):
            next(drafting.draft([first], 3, vocab_limit=100, on_progress=cancel))
        assert session.length == 1
        session.truncate(0)
        assert list(drafting.draft([11], 1, vocab_limit=100)) == [first]

    def test_drafting_beyond_the_cache_is_refused(self, session: Session) -> None:
        drafting = _drafting(session)
        with pytest.raises(BackendError, match="prefill"):
            next(drafting.draft([1], 1, vocab_limit=100))
        session.prefill()
        with pytest.raises(PromptError, match=str(CAPACITY)):
            next(drafting.draft([1], CAPACITY + 1, vocab_limit=100))
        with pytest.raises(ValueError, match="tokens"):
            next(drafting.draft([], 1, vocab_limit=100))
        with pytest.raises(ValueError, match="0 tokens"):
            next(drafting.draft([1], 0, vocab_limit=100))
        assert session.length == 0

    def test_a_shared_pass_gives_each_session_its_own_logits(self, backend: Backend, prompt: Prompt) -> None:
        """Sessions of different prompts and lengths, with different numbers of tokens; then each goes on alone."""
        shared = _shared(backend)
        prompts = [prompt, Prompt("Is there a dog?"), dataclasses.replace(prompt, question="Which colour?")]
        together, alone = ([backend.open(each, CAPACITY) for each in prompts] for _ in range(2))
        for session in [*together, *alone]:
            session.prefill()
        for session in (together[0], alone[0]):
            session.extend(TOKENS[:3])
        passes: list[list[list[int]]] = [[TOKENS[3:], [8], [2, 5, 9]], [[4], [6, 7], [1]]]
        for tokens in passes:
            found = shared.extend_together(list(zip(together, tokens, strict=True)), on_progress=lambda: None)
            assert [len(logits) for logits in found] == [len(some) for some in tokens]
            for logits, session, some in zip(found, alone, tokens, strict=True):
                self.same(logits, session.extend(some))
        for left, right in zip(together, alone, strict=True):
            assert left.length == right.length
            self.same(left.extend([3]), right.extend([3]))

    same = staticmethod(close)
    """How nearly a shared pass gives the logits of a pass alone."""

    def test_a_shared_pass_appends_for_all_or_for_none(
        self, backend: Backend, prompt: Prompt, session: Session
    ) -> None:
        shared, full = _shared(backend), backend.open(prompt, CAPACITY)
        other, unfilled = backend.open(prompt, 2), backend.open(prompt, 2)
        for each in (session, other, full):
            each.prefill()

        def cancel() -> None:
            raise _Cancelled

        with pytest.raises(PromptError, match="2 reserved"):
            shared.extend_together([(session, [1, 2]), (other, [3, 4, 5])])
        with pytest.raises(BackendError, match="prefill"):
            shared.extend_together([(session, [1]), (unfilled, [1])])
        with pytest.raises(_Cancelled):
            shared.extend_together([(session, [9, 8]), (other, [7])], on_progress=cancel)
        assert (session.length, other.length) == (0, 0)
        first, second = shared.extend_together([(session, TOKENS[:2]), (other, TOKENS[:1])])
        expected = full.extend(TOKENS[:2])
        self.same(first, expected)
        self.same(second, expected[:1])

    def test_a_session_on_a_kept_prefix_is_one_without(self, backend: Backend, prompt: Prompt) -> None:
        """The prefix outlives its session; pixels that it covers are not needed; its states of the video stay."""
        keeping, kept = _keeping(backend), _Kept()
        prompt = dataclasses.replace(prompt, digest=b"a video")
        first = keeping.open_on(prompt, CAPACITY, kept.find, lambda: None)
        first.prefill(early_layer=1, on_early_layer=lambda _: None)
        kept.keep(first)
        first.extend(TOKENS)
        first.close()
        again = dataclasses.replace(prompt, question="And then, what else?")
        fresh, states = backend.open(again, CAPACITY), list[EarlyStates]()
        expected = fresh.prefill(early_layer=1, on_early_layer=states.append, early_attention=True).clone()
        expected_rows = fresh.extend(TOKENS).clone()
        assert again.frames is not None
        missing = np.broadcast_to(np.uint8(0), again.frames.shape)
        for asked in (again, dataclasses.replace(again, frames=missing, missing=True)):
            session = keeping.open_on(asked, CAPACITY, kept.find, lambda: None)
            assert 0 < session.cached_tokens < session.prompt_tokens == fresh.prompt_tokens
            assert session.cached_video_tokens == session.video_tokens
            logits = session.prefill(early_layer=1, on_early_layer=states.append, early_attention=True)
            assert session.prompt_rows == session.prompt_tokens
            self.same_on_prefix(logits, expected)
            self.same_on_prefix(session.extend(TOKENS), expected_rows)
            for name in ("video_first", "video_last", "question_first", "question_last", "attention"):
                close(getattr(states[-1], name), getattr(states[0], name))
            states[-1].video_last.zero_()  # the receiver's own
        other = dataclasses.replace(prompt, digest=b"another")
        assert keeping.open_on(other, CAPACITY, kept.find, lambda: None).cached_tokens == 0
        with pytest.raises(FramesMissing):
            keeping.open_on(dataclasses.replace(other, frames=missing, missing=True), CAPACITY, kept.find, lambda: None)

    same_on_prefix = staticmethod(close)
    """How nearly a session on a kept prefix gives the logits of one without."""

    @pytest.mark.parametrize("compact", [False, True])
    def test_a_pruned_prefix_stays_as_it_was(self, backend: Backend, prompt: Prompt, compact: bool) -> None:
        """Another mask counts for what comes after it alone. A session without the prefix can have the same rows."""
        keeping, kept = _keeping(backend), _Kept()
        prompt = dataclasses.replace(prompt, digest=b"a video")
        first = keeping.open_on(prompt, CAPACITY, kept.find, lambda: None)
        keep = torch.arange(first.video_tokens) % 3 == 1
        first.prefill(keep, compact_positions=compact)
        kept.keep(first)
        again = dataclasses.replace(prompt, question="And then, what else?")
        fresh = backend.open(again, CAPACITY)
        expected = fresh.prefill(keep, compact_positions=compact).clone()
        for mask in (None, ~keep):
            session = keeping.open_on(again, CAPACITY, kept.find, lambda: None)
            self.same_on_prefix(session.prefill(mask, compact_positions=compact), expected)
            assert session.prompt_rows == session.prompt_tokens - int((~keep).sum())
            self.same_on_prefix(session.extend(TOKENS), fresh.extend(TOKENS))
            fresh.truncate(0)

    def test_a_conversation_goes_on_on_its_own_beginning(self, backend: Backend, prompt: Prompt) -> None:
        """Each prefix is the parent of the next, and no row is in two of them."""
        keeping, kept = _keeping(backend), _Kept()
        assert prompt.frames is not None
        video = Visual(prompt.frames, digest=b"a video")
        turns = [Turn("user", (video, "What is it?")), Turn("assistant", ("A dog.",))]
        for question, prefixes in (("Which colour?", 2), ("Where is it?", 2), ("Is it big?", 3)):
            asked = Prompt(question, turns=(*turns, Turn("user", (question,))))
            session, fresh = keeping.open_on(asked, CAPACITY, kept.find, lambda: None), backend.open(asked, CAPACITY)
            assert (session.cached_tokens > 0) == bool(kept.found)
            self.same_on_prefix(session.prefill(), fresh.prefill())
            self.same_on_prefix(session.extend(TOKENS), fresh.extend(TOKENS))
            chain = kept.keep(session)
            assert len(chain) == prefixes
            assert [one.parent for one in chain] == [None, *chain[:-1]]
            each = chain[0].nbytes / chain[0].tokens  # bytes of a token
            assert sum(one.nbytes for one in chain) == pytest.approx(chain[-1].tokens * each, rel=0.01)
            if question == "Where is it?":
                turns += [Turn("user", (question,)), Turn("assistant", ("There.",))]

    def test_branches_are_sessions_that_share_a_prefix(
        self, backend: Backend, prompt: Prompt, session: Session
    ) -> None:
        """Each is as a session with the same tokens, in any pass; the one that is adopted is the session then."""
        trunk, run = _branching(session), _branch_pass(backend)
        texts = [TOKENS[:5], [*TOKENS[:2], 40, 41, 42], [*TOKENS[:3], 50, 51], [60, 61]]
        alone = [backend.open(prompt, CAPACITY) for _ in texts]
        expected = []
        for other, text in zip(alone, texts, strict=True):
            other.prefill()
            expected.append(other.extend(text).clone())
        session.prefill()
        first = session.extend(TOKENS[:3]).clone()
        branches = [trunk.fork(length, 4) for length in (2, 3, 0)]
        assert [branch.length for branch in branches] == [2, 3, 0]
        parts = [(session, TOKENS[3:4]), (branches[0], [40, 41]), (branches[1], [50]), (branches[2], [60])]
        rows = [[row.clone() for row in logits] for logits in run(parts)]
        parts = [(session, TOKENS[4:5]), (branches[0], [42]), (branches[1], [51]), (branches[2], [61])]
        for found, logits in zip(rows, run(parts), strict=True):
            found += [row.clone() for row in logits]
        for found, length, wanted in zip(rows, (3, 2, 3, 0), expected, strict=True):
            self.same(torch.stack(found), wanted[length:])
        self.same(first, expected[0][:3])
        assert session.length == 5
        trunk.adopt(branches[0])
        assert session.length == 5
        for number in (2, 1, 0):
            self.same(session.extend([7, 8]), alone[1].extend([7, 8]))
            for each in (session, alone[1]):
                each.truncate(3 + number)
        for branch in branches[1:]:
            branch.close()
            with pytest.raises(BackendError):
                branch.extend([1])

    def test_a_pass_over_branches_that_is_given_up_leaves_all_as_they_were(
        self, backend: Backend, prompt: Prompt, session: Session
    ) -> None:
        trunk, run = _branching(session), _branch_pass(backend)
        session.prefill()
        session.extend(TOKENS[:2])
        branch = trunk.fork(1, 3)
        branch.extend([40])

        def cancel() -> None:
            raise _Cancelled

        parts = [(session, TOKENS[2:3]), (branch, [41])]
        with pytest.raises(_Cancelled):
            run(parts, on_progress=cancel)
        assert [session.length, branch.length] == [2, 2]
        for logits, text in zip(run(parts), (TOKENS[:3], [TOKENS[0], 40, 41]), strict=True):
            other = backend.open(prompt, CAPACITY)
            other.prefill()
            self.same(logits, other.extend(text)[-1:])

    def test_a_branch_has_its_limits(self, backend: Backend, prompt: Prompt, session: Session) -> None:
        trunk, other = _branching(session), backend.open(prompt, CAPACITY)
        for each in (session, other):
            each.prefill()
            each.extend(TOKENS[:2])
        with pytest.raises(ValueError, match="3"):
            trunk.fork(3, 1)
        branch = trunk.fork(1, 2)
        branch.extend([5, 6])
        with pytest.raises(PromptError):
            branch.extend([7])
        with pytest.raises(ValueError, match="truncate"):
            branch.truncate(0)
        with pytest.raises(ValueError, match="own branches"):
            _branching(other).adopt(branch)
        branch.truncate(2)
        trunk.adopt(branch)
        assert session.length == 2
        self.same(session.extend([9]), logits_of(other, [5, 9], 1)[1:])

    def test_a_question_about_no_video(self, backend: Backend) -> None:
        session = backend.open(Prompt("What color is the sky?"), CAPACITY)
        assert session.video_tokens == 0
        states: list[EarlyStates] = []
        assert session.prefill(early_layer=1, on_early_layer=states.append, early_attention=True).isfinite().all()
        assert states[0].video_last.shape == (0, backend.info.hidden_size)
        assert states[0].attention is not None
        assert states[0].attention.shape == (0,)
        session.extend(TOKENS)

    def test_a_full_cache_says_so(self, session: Session) -> None:
        session.prefill()
        session.extend([TOKENS[0]] * CAPACITY)
        with pytest.raises(PromptError, match=str(CAPACITY)):
            session.extend([1])
        session.truncate(CAPACITY - 1)
        session.extend([1])

    def test_a_prompt_beyond_the_positions_is_refused_with_the_numbers(self, backend: Backend, prompt: Prompt) -> None:
        longest = backend.info.max_positions - backend.open(prompt, 1).prompt_tokens
        backend.open(prompt, longest)
        with pytest.raises(PromptError) as refused:
            backend.open(prompt, longest + 1)
        for number in (backend.info.max_positions, longest + 1, backend.info.max_positions - longest):
            assert str(number) in str(refused.value)

    def test_bad_tokens_are_refused(self, backend: Backend, session: Session) -> None:
        session.prefill()
        for tokens in ([], [-1], [backend.info.vocab_size]):
            with pytest.raises(ValueError, match="tokens"):
                session.extend(tokens)
        assert session.length == 0

    def test_misuse_is_an_error_of_the_backend(self, session: Session) -> None:
        with pytest.raises(BackendError):
            session.extend([1])
        session.prefill()
        with pytest.raises(BackendError):
            session.prefill()
        session.close()
        session.close()
        with pytest.raises(BackendError):
            session.extend([1])


def _drafting(session: Session) -> GreedyDrafting:
    if not isinstance(session, GreedyDrafting):
        pytest.skip("this backend does not offer it")
    return session


class _Stepped(Session, SteppedPrefill, Protocol):
    """A session that offers both."""


def _stepped(session: Session) -> _Stepped:
    if not isinstance(session, SteppedPrefill):
        pytest.skip("this backend does not offer it")
    return cast(_Stepped, session)


class _Kept:
    """Prefixes by their keys."""

    def __init__(self) -> None:
        self.found: dict[bytes, KeptPrefix] = {}

    def find(self, key: bytes) -> KeptPrefix | None:
        return self.found.get(key)

    def keep(self, session: PrefixSession) -> Sequence[KeptPrefix]:
        prefixes = session.prefixes()
        self.found.update((prefix.key, prefix) for prefix in prefixes)
        return prefixes


def _keeping(backend: Backend) -> KeptPrefixes:
    if not isinstance(backend, KeptPrefixes):
        pytest.skip("this backend does not offer it")
    return backend


class _Branching(Session, Branches, Protocol):
    """A session that offers both."""


def _branching(session: Session) -> _Branching:
    if not isinstance(session, Branches):
        pytest.skip("this backend does not offer it")
    return cast(_Branching, session)


def _branch_pass(backend: Backend) -> Callable[..., list[torch.Tensor]]:
    """Its pass over tokens of a session and its branches."""
    if isinstance(backend, SharedPasses):
        return backend.extend_together
    if isinstance(backend, BranchPasses):
        return backend.extend_branches
    pytest.skip("this backend does not offer it")


def _shared(backend: Backend) -> SharedPasses:
    if not isinstance(backend, SharedPasses):
        pytest.skip("this backend does not offer it")
    return backend


def logits_of(session: Session, tokens: list[int], length: int) -> torch.Tensor:
    """A session's logits after its first ``length`` answer tokens."""
    session.truncate(length)
    return session.extend(tokens)
