"""How the command line tells an rpc's error."""

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from twinmesh_cli.session import explain


def refused(*violations: tuple[str, str], message: str) -> AioRpcError:
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in violations
        ]
    )
    detail = any_pb2.Any()
    detail.Pack(bad)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=message, details=[detail])
    trailing = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, Metadata(), trailing, message)


def test_a_single_violation_is_told_once() -> None:
    for field in ("", "time_zone"):
        message = f"{field}: must be known" if field else "must be known"
        error = refused((field, "must be known"), message=message)
        assert explain(error, gateway="here") == f"INVALID_ARGUMENT: {message}"


def test_of_several_violations_each_has_its_line() -> None:
    error = refused(("a", "is wrong"), ("", "do not go together"), message="2 fields are wrong")
    assert explain(error, gateway="here").splitlines()[1:] == ["  a: is wrong", "  do not go together"]
