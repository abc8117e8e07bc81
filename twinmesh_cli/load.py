"""`twinmesh load`: a CSV recording becomes devices and samples, exactly once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_fixed

from meshkit.status import error_info_of
from twinmesh.asset.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    device_type_service_pb2,
    device_type_service_pb2_grpc,
)
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh_cli import recording
from twinmesh_cli.recording import Mapping, MetricColumn, Plan, RecordingError
from twinmesh_cli.session import Session, fail, run

_RETRIES = 20
_RETRY_S = 0.5
_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRANSIENT


def load(
    file: Annotated[Path, typer.Argument(help="CSV file with a heading line.", exists=True, dir_okay=False)],
    device: Annotated[str, typer.Option(help="Id of the device that all rows belong to.")] = "",
    device_column: Annotated[str, typer.Option(help="Column that holds the device's id instead.")] = "",
    time_column: Annotated[
        str, typer.Option(help="Column of event times, ISO 8601; without a zone UTC.")
    ] = "time",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=METRIC[:KIND[:UNIT]]; repeatable. Without any, every other column is a double."
        ),
    ] = None,
    delimiter: Annotated[str, typer.Option(help="What separates columns.")] = ",",
    missing: Annotated[
        list[str] | None,
        typer.Option(help="What cells without a value hold, such as NaN; repeatable. Empty ones hold none."),
    ] = None,
    device_type: Annotated[
        str, typer.Option(help="Make absent devices, of this type; makes the type as well.")
    ] = "",
) -> None:
    """Load a recording as a declared backfill. Running it again completes or adds nothing."""
    try:
        mapping = _mapping(file, device, device_column, time_column, metric or [], delimiter)
        mapping = replace(mapping, missing=tuple(missing or ()))
        plan = recording.plan(file, mapping)
    except (RecordingError, OSError, UnicodeDecodeError) as error:
        fail(str(error))
    if not plan.chunks:
        fail(f"{file} has no rows")
    run(lambda session: _Load(session=session, file=file, mapping=mapping, plan=plan).run(device_type))


def _mapping(
    file: Path, device: str, device_column: str, time_column: str, metrics: list[str], delimiter: str
) -> Mapping:
    if bool(device) == bool(device_column):
        raise RecordingError("say whose samples they are: either --device ID or --device-column COLUMN")
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if metrics:
        columns = tuple(recording.parse_metric_option(text) for text in metrics)
    else:
        taken = {time_column, device_column}
        headings = recording.header(file, delimiter)
        columns = tuple(
            MetricColumn(name, recording.metric_name(name)) for name in headings if name not in taken
        )
    return Mapping(time_column, columns, device, device_column, delimiter)


class _Rate(ProgressColumn):
    """Readings per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "-")


class _Load:
    """One run of a load."""

    def __init__(self, *, session: Session, file: Path, mapping: Mapping, plan: Plan) -> None:
        self._session = session
        self._file = file
        self._mapping = mapping
        self._plan = plan
        self._writer_id = recording.writer_id(file, mapping)
        self._ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(session.channel)
        self._devices: Any = device_service_pb2_grpc.DeviceServiceStub(session.channel)
        self._device_types: Any = device_type_service_pb2_grpc.DeviceTypeServiceStub(session.channel)
        self._backfills: dict[int, str] = {}
        self._refusals: dict[str, int] = {}
        self._stored = 0

    async def run(self, device_type: str) -> None:
        device_ids = self._device_ids()
        if device_type:
            await self._make_devices(device_ids, device_type)
        await self._require_fit(device_ids)
        await self._declare_backfills()
        await self._send_after(await self._committed())
        print(f"{self._plan.readings} readings read; {self._stored} samples were new and are stored")
        for reason, number in sorted(self._refusals.items()):
            print(f"  refused {number} times: {reason}")
        if self._refusals:
            raise typer.Exit(1)

    def _device_ids(self) -> list[str]:
        if self._mapping.device_id:
            return [self._mapping.device_id]
        chunks = recording.chunks(self._file, self._mapping)
        return sorted({reading.device_id for chunk in chunks for reading in chunk.readings})

    async def _make_devices(self, device_ids: Sequence[str], device_type: str) -> None:
        metrics = [column.definition for column in self._mapping.metrics]
        await self._unless_there(
            self._device_types.CreateDeviceType,
            device_type_service_pb2.CreateDeviceTypeRequest(
                device_type=device_type_service_pb2.DeviceType(id=device_type, metrics=metrics)
            ),
        )
        for device_id in device_ids:
            device = device_service_pb2.Device(id=device_id, device_type_id=device_type)
            await self._unless_there(
                self._devices.CreateDevice, device_service_pb2.CreateDeviceRequest(device=device)
            )

    async def _require_fit(self, device_ids: Sequence[str]) -> None:
        """End the program when devices are absent or report something else than the file.

        Refusals are outcomes: a chunk that was refused stays refused when it is sent again.
        """
        type_ids: dict[str, str] = {}
        for device_id in device_ids:
            device = await self._find(
                self._devices.GetDevice,
                device_service_pb2.GetDeviceRequest(id=device_id),
                absent=f"device {device_id!r} does not exist; create it, or add --device-type TYPE",
            )
            if device.status == device_service_pb2.DEVICE_STATUS_DISABLED:
                fail(f"device {device_id!r} is disabled")
            type_ids[device.device_type_id] = device_id
        for type_id, device_id in type_ids.items():
            device_type = await self._find(
                self._device_types.GetDeviceType,
                device_type_service_pb2.GetDeviceTypeRequest(id=type_id),
                absent=f"device type {type_id!r} of device {device_id!r} does not exist any more",
            )
            kinds = {metric.name: metric.kind for metric in device_type.metrics}
            for column in self._mapping.metrics:
                if kinds.get(column.metric) != column.definition.kind:
                    fail(
                        f"device type {type_id!r} defines no metric {column.metric!r} of kind {column.kind}; "
                        "define it, or map the column otherwise with --metric"
                    )

    async def _find(self, method: Any, request: Any, *, absent: str) -> Any:
        try:
            return await self._session.call(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            fail(absent)

    async def _unless_there(self, method: Any, request: Any) -> None:
        try:
            await self._session.call(method, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    async def _declare_backfills(self) -> None:
        for span, (first, last) in self._plan.ranges.items():
            request = ingest_service_pb2.CreateBackfillRequest()
            request.start_time.FromDatetime(first)
            request.end_time.FromDatetime(last + timedelta(microseconds=1))
            backfill = await self._session.call(self._ingest.CreateBackfill, request)
            self._backfills[span] = backfill.id

    async def _committed(self) -> int:
        """Send the last chunk first: return the last one that the server has, as its answer tells."""
        last = next(islice(recording.chunks(self._file, self._mapping), self._plan.chunks - 1, None))
        try:
            await self._ingest_chunk(last)
        except grpc.aio.AioRpcError as error:
            info = error_info_of(error)
            if info.reason != "SEQUENCE_GAP":
                raise
            return int(info.metadata["expected"]) - 1
        return self._plan.chunks

    async def _send_after(self, done: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(self._file.name, total=self._plan.readings)
            for chunk in recording.chunks(self._file, self._mapping):
                if chunk.sequence > done:
                    await self._ingest_chunk(chunk)
                progress.advance(task, len(chunk.readings))

    @retry(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_RETRIES),
        wait=wait_fixed(_RETRY_S),
        reraise=True,
    )
    async def _ingest_chunk(self, chunk: recording.Chunk) -> None:
        """Send a chunk until the server has it; its sequence makes repeating harmless."""
        request = ingest_service_pb2.IngestTelemetryRequest(
            readings=chunk.readings,
            writer_id=self._writer_id,
            sequence=chunk.sequence,
            backfill_id=self._backfills[chunk.span],
        )
        answer = await self._session.call(self._ingest.IngestTelemetry, request)
        self._stored += 0 if answer.duplicate else answer.stored_samples
        for refusal in answer.refusals:
            told = f"{refusal.message} ({refusal.device_id} {refusal.metric})".replace(" )", ")")
            self._refusals[told] = self._refusals.get(told, 0) + 1
