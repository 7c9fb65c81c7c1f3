"""What a session of any family answers, compared with what transformers says."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pvlm_protocols.backend import EarlyStates, Session

QUESTION = "What happens first in the video?"
ANSWER = [11, 7, 29, 300, 17, 5, 42, 600]


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def check_logits(session: Session, expected: torch.Tensor) -> None:
    """``expected``: after the prompt, and after each token of `ANSWER`. The end of it is taken back and fed again."""
    close(session.prefill(), expected[0])
    close(session.extend(ANSWER[:1]), expected[1:2])
    close(session.extend(ANSWER[1:6]), expected[2:7])
    session.truncate(3)
    close(session.extend(ANSWER[3:]), expected[4:])
    session.close()


def check_pruned_logits(
    session: Session, keep: torch.Tensor, compact_positions: bool, expected: torch.Tensor, unpruned: torch.Tensor
) -> None:
    assert not torch.allclose(expected, unpruned, atol=1e-2)
    close(session.prefill(keep, compact_positions=compact_positions), expected[0])
    close(session.extend(ANSWER[:2]), expected[1:3])
    session.truncate(1)
    close(session.extend(ANSWER[1:]), expected[2:])


def rows_of(ids: torch.Tensor, text: Sequence[int]) -> torch.Tensor:
    """The rows of the prompt at which a text's tokens stand."""
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)].tolist() == text)
    return torch.arange(start, start + len(text))


def check_early_states(
    found: EarlyStates, layer: int, states: Sequence[torch.Tensor], video: torch.Tensor, question: torch.Tensor
) -> None:
    """``states``: of the input and each layer. ``video``, ``question``: their rows in the prompt."""
    close(found.video_first, states[0][video])
    close(found.question_first, states[0][question])
    close(found.video_last, states[layer][video])
    close(found.question_last, states[layer][question])


def check_early_attention(
    found: EarlyStates, attention: torch.Tensor, video: torch.Tensor, question: torch.Tensor
) -> torch.Tensor:
    """``attention``: ``(heads, P, P)``. Returns the mean that a token of the question gives to each of the video."""
    assert found.attention is not None
    expected = attention[:, question][..., video].mean(dim=(0, 1))
    torch.testing.assert_close(found.attention, expected, rtol=1e-4, atol=1e-7)
    return expected


def greedy_answer(session: Session, end: Sequence[int], max_tokens: int = 24) -> tuple[int, ...]:
    answer = [int(session.prefill().argmax())]
    while answer[-1] not in end and len(answer) < max_tokens:
        answer.append(int(session.extend(answer[-1:])[0].argmax()))
    return tuple(answer)


def distance(session: Session, expected: torch.Tensor) -> float:
    """How far the logits are from those of `check_logits`, as a share of their size. They are float32."""
    found = torch.cat([session.prefill()[None].clone(), session.extend(ANSWER)])
    assert found.dtype == torch.float32
    return float((found - expected).norm() / expected.norm())
