"""Chunks in, events out, without a framework."""

from __future__ import annotations

from pvlm import Answer
from pvlm.serving.replies import Reply, event
from tests.support.figures import stats

ANSWER = Answer(
    text="ab", tokens=(1, 2), finish_reason="length", stats=stats(windows=(4, 3, 4), accepted_lengths=(4, 0, 2))
)
REPLY = Reply(id="chatcmpl-1", model="m", created=5)


def test_a_whole_reply() -> None:
    found = REPLY.whole(ANSWER)
    assert (found["object"], found["id"], found["created"], found["model"]) == ("chat.completion", "chatcmpl-1", 5, "m")
    (choice,) = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "length")
    assert found["usage"] == {
        "prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    assert "metrics" not in found


def test_a_stream_has_a_role_first_and_a_reason_last() -> None:
    chunks = [REPLY.opening(), REPLY.piece("ab"), *REPLY.closing(ANSWER)]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""}, {"content": "ab"}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_comes_in_a_chunk_of_its_own() -> None:
    reply = Reply(id="chatcmpl-1", model="m", created=5, include_usage=True)
    chunks = [reply.opening(), reply.piece("ab"), *reply.closing(ANSWER)]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 3
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 34


def test_figures_of_speculation_have_vllm_s_names() -> None:
    found = Reply(id="1", model="m", created=5, speculation="detailed", times=True).whole(ANSWER)["metrics"]
    assert found["speculative_decoding"] == {
        "mean_acceptance_length": 3.0,
        "draft_acceptance_rate": round(6 / 11, 4),
        "acceptance_histogram": [1, 0, 1, 0, 1],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 6,
        "num_draft_tokens": 11,
        "num_spec_tokens": 4,
        "per_step_accepted": [4, 0, 2],
        "per_step_drafted": [4, 3, 4],
    }
    assert found["time_to_first_token_ms"] == 4600
    assert found["queue_time_ms"] == 0
    assert found["mean_itl_ms"] == round(400 / 3, 4)
    brief = Reply(id="1", model="m", created=5, speculation="summary").closing(ANSWER)[-1]["metrics"]
    assert set(brief) == {"speculative_decoding"}
    assert "per_step_accepted" not in brief["speculative_decoding"]


def test_an_answer_without_a_draft_has_no_steps() -> None:
    alone = Answer(text="", tokens=(), finish_reason="stop", stats=stats(windows=(), accepted_lengths=(), new_tokens=1))
    found = Reply(id="1", model="m", created=5, speculation="summary", times=True).whole(alone)["metrics"]
    assert found["speculative_decoding"]["mean_acceptance_length"] is None
    assert found["mean_itl_ms"] is None


def test_an_event_is_one_line() -> None:
    assert event(REPLY.piece("a\n\nb")).count(b"\n") == 2
