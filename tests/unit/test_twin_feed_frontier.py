"""The frontier stands behind the last commit before the first that is missing, however commits come."""

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given

from twin_svc.feed_frontier import FeedFrontier

INSTANCES = (3, 4)


def parts_of(commit_no: int) -> int:
    return 1 + commit_no % 3


ALL = [
    (instance, commit_no, part)
    for instance in INSTANCES
    for commit_no in range(1, 7)
    for part in range(parts_of(commit_no))
]


def take(frontier: FeedFrontier, message: tuple[int, int, int]) -> bool:
    instance, commit_no, part = message
    return frontier.take(instance, commit_no, part, parts_of(commit_no))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(ALL),
            st.tuples(st.just("store"), st.dictionaries(st.sampled_from(INSTANCES), st.integers(0, 6))),
        ),
        max_size=60,
    )
)
def test_the_frontier_is_that_of_a_set(
    steps: Sequence[tuple[int, int, int] | tuple[str, dict[int, int]]],
) -> None:
    frontier = FeedFrontier({3: 1})
    known = {message for message in ALL if message[:2] == (3, 1)}
    for step in steps:
        if len(step) == 2:
            frontier.advance(step[1])
            known |= {message for message in ALL if message[1] <= step[1].get(message[0], 0)}
        else:
            was_whole = frontier.knows(*step[:2])
            made_whole = take(frontier, step)
            assert made_whole == (frontier.knows(*step[:2]) and not was_whole)
            known.add(step)
        for instance in INSTANCES:
            whole = [
                commit_no
                for commit_no in range(1, 7)
                if all((instance, commit_no, part) in known for part in range(parts_of(commit_no)))
            ]
            through = next((n - 1 for n in range(1, 8) if n not in whole), 6)
            assert frontier.through.get(instance, 0) == through
            assert all(frontier.knows(instance, n) == (n in whole) for n in range(1, 7))
            beyond = [
                commit_no for found, commit_no, _ in known if found == instance and commit_no > through + 1
            ]
            assert frontier.has_holes or not beyond
    if all(message in known for message in ALL):
        assert not frontier.has_holes


def test_instances_that_commit_no_more_are_told_by_one_number() -> None:
    frontier = FeedFrontier({1: 5, 2: 9, 7: 3})
    frontier.base = 2
    assert (frontier.coverage.base, frontier.coverage.numbers) == (2, {7: 3})


def test_what_was_read_of_it_stands_still() -> None:
    # A read of the store begins with it, and goes on while commits are announced.
    frontier = FeedFrontier({})
    before = frontier.through
    frontier.take(1, 1, 0, 1)
    assert (before, frontier.through) == ({}, {1: 1})


def test_commits_far_beyond_a_hole_are_not_remembered_without_end() -> None:
    frontier = FeedFrontier({})
    for commit_no in range(2, 20_000):
        frontier.take(1, commit_no, 0, 1)
    assert frontier.has_holes
    frontier.advance({1: 1})
    assert frontier.through[1] < 20_000
    frontier.advance({1: 19_999})
    assert (frontier.through[1], frontier.has_holes) == (19_999, False)
