import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import paging
from meshkit.errors import InvalidArgument

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
positions = st.one_of(texts, st.integers(-(2**63), 2**63), st.lists(texts, max_size=3))
questions = st.lists(st.one_of(st.text(max_size=8), st.integers()), max_size=4)


@given(questions, positions)
def test_a_token_continues_its_own_question(question: object, after: object) -> None:
    assert paging.decode(question, paging.encode(question, after)) == after


@given(questions, questions, positions)
def test_a_token_does_not_continue_another_question(one: object, other: object, after: object) -> None:
    if one != other:
        with pytest.raises(InvalidArgument):
            paging.decode(other, paging.encode(one, after))


@given(st.text(min_size=1, max_size=200))
def test_a_damaged_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        paging.decode(["question"], token)


@pytest.mark.parametrize("after", ["\0", "a\ud800", [1, ["a\0"]]])
def test_text_that_the_database_cannot_hold_is_refused(after: object) -> None:
    with pytest.raises(InvalidArgument):
        paging.decode(["question"], paging.encode(["question"], after))


def test_the_first_page_has_no_position() -> None:
    assert paging.decode(["question"], "") is None


@pytest.mark.parametrize(("asked", "rows"), [(0, 100), (1, 1), (1000, 1000), (10**9, 1000)])
def test_a_page_is_bounded(asked: int, rows: int) -> None:
    assert paging.page_size(asked, default=100, maximum=1000) == rows
