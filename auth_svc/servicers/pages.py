"""Pages of lists by id: sizes, and tokens that hold the last id."""

from meshkit import paging

_DEFAULT_PAGE = 100
_LONGEST_PAGE = 1000


def size(asked: int) -> int:
    """Return how many rows a page holds."""
    return paging.page_size(asked, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE)


def position(question: object, page_token: str) -> str:
    """Return the id that a page begins after, "" for the first page.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    after = paging.decode(question, page_token)
    if after is None:
        return ""
    if not isinstance(after, str):
        raise paging.invalid_token()
    return after


def next_page_token(question: object, last: str | None) -> str:
    """Return the token of the page after an id; None: there is none."""
    return "" if last is None else paging.encode(question, last)
