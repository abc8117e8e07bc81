"""Resume tokens: which commits a caller was told of, as a text."""

import base64
import binascii
import json
from dataclasses import dataclass

from meshkit.errors import invalid_field
from telemetry_store.commit_numbers import Coverage

_FORM = 1


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """How far a watch has told.

    Attributes:
        coverage: of which commits.
        members: a digest of the twins that it held and of the metrics that it was asked for.
    """

    coverage: Coverage
    members: int


def encode(point: ResumePoint) -> str:
    """Return a token."""
    coverage = point.coverage
    content = [_FORM, coverage.base, sorted(coverage.numbers.items()), point.members]
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(token: str) -> ResumePoint:
    """Return what a token says.

    Raises:
        InvalidArgument: INVALID_FIELD, it is none.
    """
    try:
        content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        form, base, numbers, members = content
        coverage = Coverage(base, dict(numbers))
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise _no_token() from error
    integers = [base, *coverage.numbers, *coverage.numbers.values(), members]
    if form != _FORM or not all(type(number) is int and 0 <= number < 1 << 63 for number in integers):
        raise _no_token()
    return ResumePoint(coverage, members)


def _no_token() -> Exception:
    return invalid_field("resume_token", "is no token of a watch; leave it out to begin anew")
