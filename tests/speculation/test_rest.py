"""How long a draft rests that does not pay."""

from __future__ import annotations

from pvlm.speculation.rest import LONGEST_HOPELESS_REST, LONGEST_REST, Rest


def lengths(rest: Rest, count: int, *, hopeless: bool = False) -> list[int]:
    """Of further rests, one after the other."""
    found = []
    for _ in range(count):
        rest.begin(hopeless=hopeless)
        length = 0
        while not rest.over:
            rest.wrote_alone(1)
            length += 1
        found.append(length)
    return found


def test_each_rest_is_twice_as_long_up_to_a_limit():
    assert lengths(Rest(), 7) == [16, 32, 64, 128, 256, 256, 256]
    assert lengths(Rest(), 9, hopeless=True) == [16, 32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert (LONGEST_REST, LONGEST_HOPELESS_REST) == (256, 1024)


def test_a_rest_is_shorter_again_where_there_is_hope():
    rest = Rest()
    lengths(rest, 7, hopeless=True)
    assert lengths(rest, 2) == [256, 256]


def test_work_makes_the_next_rest_a_short_one():
    rest = Rest()
    lengths(rest, 3)
    rest.wrote_together(4)
    assert lengths(rest, 2) == [16, 32]


def test_a_hopeless_try_that_paid_for_a_moment_changes_nothing():
    rest = Rest()
    lengths(rest, 3, hopeless=True)
    rest.wrote_together(100)
    assert lengths(rest, 1, hopeless=True) == [128]


def test_work_as_long_as_the_next_hopeless_rest_makes_it_a_short_one():
    rest = Rest()
    lengths(rest, 3, hopeless=True)
    for _ in range(32):
        rest.wrote_together(4)
    assert lengths(rest, 2) == [16, 32]


def test_answers_at_once_share_one_rest():
    rest = Rest()
    for _ in range(8):
        rest.begin()
    rest.wrote_alone(16)
    assert rest.over
    assert lengths(rest, 1) == [32]


def test_a_hopeless_rest_is_long_while_much_of_it_is_to_come():
    rest = Rest(first=100)
    rest.begin()
    assert not rest.long
    rest.wrote_alone(100)
    rest.begin(hopeless=True)
    rest.wrote_alone(200 - 64)
    assert rest.long
    rest.wrote_alone(1)
    assert not rest.long


def test_a_rest_may_end_after_a_quarter_of_it():
    rest = Rest()
    rest.begin()
    assert not rest.may_end
    rest.wrote_alone(4)
    assert rest.may_end
    assert not rest.over
    rest.end()
    assert rest.over
    assert lengths(rest, 1) == [32], "a try that does not pay makes the next one longer"


def test_a_hopeless_rest_does_not_end_early():
    rest = Rest()
    rest.begin(hopeless=True)
    rest.wrote_alone(15)
    assert not rest.may_end
    rest.wrote_alone(1)
    assert rest.may_end
