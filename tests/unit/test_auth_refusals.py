"""What the gateway's log tells becomes a record."""

import pytest
from google.rpc import code_pb2

from auth_svc.refusals import Refusal, refusal


def told(http_status: int = 401, **tags: str) -> Refusal:
    return refusal(tags, http_status=http_status, time_us=1, duration_us=2)


@pytest.mark.parametrize(
    ("http_status", "code"),
    [
        (400, code_pb2.INVALID_ARGUMENT),
        (401, code_pb2.UNAUTHENTICATED),
        (403, code_pb2.PERMISSION_DENIED),
        (404, code_pb2.NOT_FOUND),
        (408, code_pb2.DEADLINE_EXCEEDED),
        (413, code_pb2.INVALID_ARGUMENT),
        (429, code_pb2.RESOURCE_EXHAUSTED),
        (431, code_pb2.INVALID_ARGUMENT),
        (500, code_pb2.INTERNAL),
        (503, code_pb2.UNAVAILABLE),
        (504, code_pb2.DEADLINE_EXCEEDED),
    ],
)
def test_codes_of_http(http_status: int, code: int) -> None:
    assert told(http_status, grpc_status="-").code == code


def test_a_grpc_status_is_the_code() -> None:
    assert told(200, grpc_status="14").code == code_pb2.UNAVAILABLE


def test_a_grpc_call_is_named_as_rpcs_are_and_others_by_method() -> None:
    assert told(path="/a.b.C/D", method="POST", content_type="application/grpc-web+proto").rpc == "/a.b.C/D"
    assert told(path="/v1/devices", method="POST", content_type="application/json").rpc == "POST /v1/devices"


def test_what_is_absent_is_empty_and_what_is_long_is_cut() -> None:
    nobody = told(tenant="-", kind="-", subject="-", credential_id="-", address="-", trace_id="-")
    assert {nobody.tenant, nobody.principal, nobody.credential_id, nobody.trace_id} == {""}
    assert len(told(path="/" + "x" * 9_000, method="GET").event("e").rpc) == 256
