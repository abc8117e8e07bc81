"""Opaque page tokens, bound to the question that they continue."""

import base64
import binascii
import hashlib
import json

from meshkit.errors import InvalidArgument
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_DIGEST_CHARS = 16
_HIGHEST = 2**63 - 1


def page_size(asked: int, *, default: int, maximum: int) -> int:
    """Return how many rows a page holds: the default for 0, at most the maximum (AIP-158)."""
    return min(asked or default, maximum)


def encode(question: object, after: object) -> str:
    """Return the token of the page after a position.

    Args:
        question: what was asked, page size apart; JSON-able.
        after: the position, JSON-able.
    """
    raw = json.dumps([_digest(question), after], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(question: object, token: str) -> object | None:
    """Return the position that a token continues after, None for the first page.

    Raises:
        InvalidArgument: the token is damaged or belongs to another question.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        digest, after = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        is_storable = _is_storable(after)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise invalid_token() from None
    if not is_storable or digest != _digest(question) or after is None:
        raise invalid_token()
    position: object = after
    return position


def number_after(question: object, token: str, *, first: int) -> int:
    """Return the number that a page of numbered things continues after.

    Args:
        question: what was asked, page size apart; JSON-able.
        token: of the page before, "" for none.
        first: what the first page continues after.

    Raises:
        InvalidArgument: the token is damaged or belongs to another question.
    """
    after = decode(question, token)
    if after is None:
        return first
    if not isinstance(after, int) or not 0 <= after <= _HIGHEST:
        raise invalid_token()
    return after


def _is_storable(position: object) -> bool:
    """Say whether a position is text for PostgreSQL, where it is compared: without NUL.

    Raises:
        ValueError: lone surrogates.
    """
    if isinstance(position, list):
        return all(map(_is_storable, position))
    return not isinstance(position, str) or b"\0" not in position.encode()


def _digest(question: object) -> str:
    canonical = json.dumps(question, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_CHARS]


def invalid_token() -> InvalidArgument:
    """Return the error for a page token that cannot be continued."""
    return InvalidArgument(
        "page_token is damaged or belongs to another question; start again without it",
        reason=ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID,
    )
