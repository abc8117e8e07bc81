"""Resume tokens say which commits were told."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from meshkit.errors import InvalidArgument
from telemetry_store.commit_numbers import Coverage
from twin_svc.tokens import ResumePoint, decode, encode

_NUMBERS = st.integers(0, 2**40)
_COVERAGES = st.builds(
    lambda base, open_: Coverage(base, {base + 1 + instance: number for instance, number in open_.items()}),
    st.integers(0, 5),
    st.dictionaries(st.integers(0, 4), st.integers(0, 5), max_size=4),
)


@given(_COVERAGES, st.integers(0, 2**63 - 1))
def test_tokens_come_back(coverage: Coverage, members: int) -> None:
    point = ResumePoint(coverage, members)
    assert decode(encode(point)) == point


@given(_COVERAGES, _COVERAGES)
def test_covering_is_telling_every_commit_of_the_other(one: Coverage, other: Coverage) -> None:
    def tells(coverage: Coverage, instance: int, commit: int) -> bool:
        if instance in coverage.numbers:
            return commit <= coverage.numbers[instance]
        return instance <= coverage.base

    commits = [(instance, commit) for instance in range(1, 12) for commit in range(1, 8)]
    assert one.covers(other) == all(tells(one, *commit) for commit in commits if tells(other, *commit))
    instances, numbers = np.array(commits).T
    assert one.told(instances.astype(np.int32), numbers).tolist() == [
        tells(one, *commit) for commit in commits
    ]


def test_what_comes_from_nowhere_was_not_told() -> None:
    assert not Coverage(9).told(np.zeros(1, np.int32), np.zeros(1, np.int64)).any()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "====",
        "W1tb" * 1_000,
        "W10",
        "bnVsbA",
        "WzEsMCxbXSwtMV0",
        "WzIsMCxbXSwwXQ",
        "WzEsMCxbWzEsMS41XV0sMF0",
        "é",
    ],
)
def test_what_is_no_token_is_refused_by_name(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(token)
    assert [violation.field for violation in caught.value.violations] == ["resume_token"]


@given(st.text(max_size=40))
def test_any_text_is_a_token_or_refused(token: str) -> None:
    try:
        decode(token)
    except InvalidArgument:
        return
