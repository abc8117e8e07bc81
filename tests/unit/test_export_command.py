"""`twinmesh export` writes a whole file or none."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from typer.testing import CliRunner, Result

from twinmesh.auth.v1.session_service_pb2 import RefreshRequest, RefreshResponse
from twinmesh.auth.v1.session_service_pb2_grpc import (
    SessionServiceServicer,
    add_SessionServiceServicer_to_server,
)
from twinmesh.twin.v1 import history_service_pb2
from twinmesh.twin.v1.history_service_pb2 import ExportHistoryRequest
from twinmesh.twin.v1.history_service_pb2_grpc import (
    HistoryServiceServicer,
    add_HistoryServiceServicer_to_server,
)
from twinmesh_cli.main import app


class Exporting(HistoryServiceServicer):
    """Sends two pieces, and then fails if told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[ExportHistoryRequest] = []
        self.shown: list[str | bytes] = []

    def ExportHistory(
        self, request: ExportHistoryRequest, context: grpc.ServicerContext
    ) -> Iterator[HttpBody]:
        self.asked.append(request)
        self.shown += [value for name, value in context.invocation_metadata() if name == "authorization"]
        yield HttpBody(data=b"one\n")
        yield HttpBody(data=b"two\n")
        if self.fails:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it took too long")


class Sessions(SessionServiceServicer):
    def Refresh(self, request: RefreshRequest, context: grpc.ServicerContext) -> RefreshResponse:
        answer = RefreshResponse(access_token="renewed", refresh_token="next")
        answer.expires_in.FromSeconds(900)
        return answer


def run_export(service: Exporting, *arguments: str, log_in: Path | None = None) -> Result:
    server = grpc.server(ThreadPoolExecutor(1))
    add_SessionServiceServicer_to_server(Sessions(), server)
    add_HistoryServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    gateway = f"127.0.0.1:{port}"
    environment = {"TWINMESH_GATEWAY": gateway, "TWINMESH_API_KEY": "key"}
    if log_in is not None:
        token = {"access_token": "kept", "refresh_token": "first", "renew_at": time.time() + 600}
        log_in.write_text(json.dumps({gateway: token}))
        environment = {"TWINMESH_GATEWAY": gateway, "TWINMESH_CREDENTIALS": str(log_in)}
    try:
        return CliRunner().invoke(app, ["export", *arguments], env=environment)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.csv", [], history_service_pb2.EXPORT_FORMAT_CSV),
        ("a.parquet", [], history_service_pb2.EXPORT_FORMAT_PARQUET),
        ("a.ARROW", [], history_service_pb2.EXPORT_FORMAT_ARROW),
        ("a.csv", ["--format", "parquet"], history_service_pb2.EXPORT_FORMAT_PARQUET),
    ],
)
def test_the_file_is_what_came(tmp_path: Path, name: str, options: list[str], expected: int) -> None:
    service = Exporting()
    done = run_export(service, str(tmp_path / name), "pump-1", "pump-2", "--metric", "flow", *options)
    assert done.exit_code == 0, done.output
    assert "8 bytes" in done.stderr
    assert (tmp_path / name).read_bytes() == b"one\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (request,) = service.asked
    assert (list(request.ids), list(request.metrics)) == (["pump-1", "pump-2"], ["flow"])
    assert request.format == expected


def test_it_begins_with_a_token_that_does_not_end_before_it(tmp_path: Path) -> None:
    service = Exporting()
    done = run_export(service, str(tmp_path / "a.csv"), "pump-1", log_in=tmp_path / "credentials.json")
    assert done.exit_code == 0, done.output
    assert service.shown == ["Bearer renewed"]


def test_what_fails_on_its_way_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("before")
    done = run_export(Exporting(fails=True), str(file), "pump-1")
    assert done.exit_code == 1
    assert "it took too long" in done.stderr
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_that_says_no_form_is_asked_about(tmp_path: Path) -> None:
    service = Exporting()
    done = run_export(service, str(tmp_path / "a.txt"), "pump-1")
    assert done.exit_code == 2
    assert "--format" in done.stderr
    assert run_export(service, str(tmp_path / "none" / "a.csv"), "pump-1").exit_code == 1
    assert service.asked == []
