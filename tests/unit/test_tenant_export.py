"""`twinmesh tenants export` asks by year, and waits for what passes."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api.httpbody_pb2 import HttpBody
from grpc_status import rpc_status
from typer.testing import CliRunner, Result

from meshkit.errors import ResourceExhausted
from meshkit.status import to_status
from twinmesh.asset.v1.device_service_pb2 import Device, ListDevicesResponse
from twinmesh.twin.v1.history_service_pb2 import ExportHistoryRequest
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli import tenant_export
from twinmesh_cli.main import app

YEAR = datetime.now(UTC).year


class Gateway(grpc.GenericRpcHandler):
    """Has one device with a sample in each of these years; the first call is busy, the third breaks off."""

    def __init__(self, *years: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self._years = years
        self._code = code
        self.asked: list[ExportHistoryRequest] = []
        self.calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if name == "ExportHistory":
            return grpc.unary_stream_rpc_method_handler(
                self._export, ExportHistoryRequest.FromString, HttpBody.SerializeToString
            )
        # All other lists are empty.
        answer = ListDevicesResponse(devices=[Device(id="pump-1")] if name == "ListDevices" else [])
        return grpc.unary_unary_rpc_method_handler(lambda *_: answer.SerializeToString())

    def _export(self, request: ExportHistoryRequest, context: grpc.ServicerContext) -> Iterator[HttpBody]:
        self.calls += 1
        if self.calls == 1:
            busy = ResourceExhausted(
                "retry", reason=ErrorReason.ERROR_REASON_EXPORTS_BUSY, retry_after_s=10.0
            )
            context.abort_with_status(rpc_status.to_status(to_status(busy)))
        if self.calls == 3:
            yield HttpBody(data=b"half of a file")
            context.abort(self._code, "going away")
        self.asked.append(request)
        end = request.end_time.ToDatetime().year if request.HasField("end_time") else YEAR + 1
        times = [year for year in self._years if request.start_time.ToDatetime().year <= year < end]
        file = io.BytesIO()
        pq.write_table(pa.table({"time": pa.array(times, pa.int64())}), file)
        yield HttpBody(data=file.getvalue())


def run_export(gateway: Gateway, folder: Path) -> Result:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((gateway,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environment = {"TWINMESH_GATEWAY": f"127.0.0.1:{port}", "TWINMESH_API_KEY": "key"}
    try:
        return CliRunner().invoke(app, ["tenants", "export", str(folder)], env=environment)
    finally:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_export, "_FIRST_WAIT_S", 0.0)


def test_each_year_is_asked_for_until_it_is_there(tmp_path: Path) -> None:
    gateway = Gateway(1985, 2000, YEAR)
    done = run_export(gateway, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "going away" in done.stderr
    files = {
        file.stem: pq.read_table(file).to_pydict()["time"]
        for file in (tmp_path / "out" / "samples" / "pump-1").iterdir()
    }
    assert files == {"before-2000": [1985], "2000": [2000], str(YEAR): [YEAR]}
    # Nothing is left out in between, nor comes twice.
    assert gateway.asked[0].start_time.seconds == 0
    assert not gateway.asked[-1].HasField("end_time")
    assert [each.end_time for each in gateway.asked[:-1]] == [each.start_time for each in gateway.asked[1:]]


def test_what_does_not_pass_ends_the_export(tmp_path: Path) -> None:
    gateway = Gateway(YEAR, code=grpc.StatusCode.PERMISSION_DENIED)
    done = run_export(gateway, tmp_path / "out")
    assert done.exit_code == 1
    assert "going away" in done.stderr
    assert gateway.calls == 3
    assert not (tmp_path / "out" / tenant_export.MANIFEST).exists()
