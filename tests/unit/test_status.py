"""Errors as statuses: whatever they quote, they fit into the headers in which they travel."""

from urllib.parse import quote

from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshkit import status
from meshkit.errors import FieldViolation, InvalidArgument
from meshkit.status import to_status
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_REASON = ErrorReason.ERROR_REASON_INVALID_FIELD
_LONG = st.text(st.characters(exclude_categories=["Cs"]), max_size=3_000)
_SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
# Without the name of the limit: what a gRPC client takes by default.
_MOST_BYTES = 8 * 1024


def _violations(text: st.SearchStrategy[str], *, most: int) -> st.SearchStrategy[list[FieldViolation]]:
    return st.lists(st.builds(FieldViolation, text, text, st.just("string.max_len")), max_size=most)


def _told(told: status_pb2.Status) -> list[FieldViolation]:
    request = error_details_pb2.BadRequest()
    for detail in told.details:
        detail.Unpack(request)
    return [FieldViolation(each.field, each.description, each.reason) for each in request.field_violations]


@given(_LONG, _violations(_LONG, most=100), _LONG)
def test_a_status_fits_into_headers(message: str, violations: list[FieldViolation], value: str) -> None:
    error = InvalidArgument(message, reason=_REASON, violations=violations, metadata={"id": value})
    told = to_status(error)
    in_text = len(quote(told.message, safe=" "))
    in_base64 = (told.ByteSize() + 2) // 3 * 4
    assert in_text + in_base64 < _MOST_BYTES
    assert bool(_told(told)) == bool(violations)


@given(_SHORT, _violations(_SHORT, most=5))
def test_what_is_short_is_told_as_it_is(message: str, violations: list[FieldViolation]) -> None:
    error = InvalidArgument(message, reason=_REASON, violations=violations)
    told = to_status(error)
    assert (told.message, _told(told)) == (message, violations)


def test_a_key_of_any_length_is_quoted_in_part() -> None:
    told = to_status(InvalidArgument("x" * 70_000, reason=_REASON))
    assert told.message.endswith("x…")
    assert len(told.message.encode()) == status._TEXT_BYTES
