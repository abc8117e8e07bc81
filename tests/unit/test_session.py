"""How the command line tells an rpc's error, and when it renews a log-in."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from twinmesh.auth.v1 import session_service_pb2 as pb
from twinmesh.auth.v1 import session_service_pb2_grpc as pb_grpc
from twinmesh_cli.session import ClientSettings, credentials_of, explain, open_session


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


class _Sessions(pb_grpc.SessionServiceServicer):
    def Refresh(self, request: pb.RefreshRequest, context: grpc.ServicerContext) -> pb.RefreshResponse:
        answer = pb.RefreshResponse(access_token="renewed", refresh_token="next")
        answer.expires_in.FromSeconds(900)
        return answer


@pytest.mark.parametrize(("left_s", "lasts_s", "shown"), [
    (400, 0, "kept"), (400, 300, "kept"), (400, 780, "renewed"), (890, 780, "kept"), (30, 0, "renewed"),
])  # fmt: skip
async def test_a_log_in_is_renewed_for_what_lasts_longer_than_its_token(
    tmp_path: Path, left_s: float, lasts_s: float, shown: str
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    pb_grpc.add_SessionServiceServicer_to_server(_Sessions(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = ClientSettings(gateway=f"127.0.0.1:{port}", credentials=tmp_path / "credentials.json")
    try:
        async with open_session(settings) as session:
            log_in = pb.LoginResponse(access_token="kept", refresh_token="first")
            log_in.expires_in.FromSeconds(int(left_s))
            session.store.write(credentials_of(log_in))
            assert await session.credential(lasts_s=lasts_s) == shown
    finally:
        server.stop(None).wait()
