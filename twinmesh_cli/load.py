"""`twinmesh load`: recordings in CSV or Parquet files become devices and samples, exactly once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
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

from twinmesh.asset.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    device_type_service_pb2,
    device_type_service_pb2_grpc,
)
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh_cli import recording
from twinmesh_cli.load_stream import LoadStream
from twinmesh_cli.outgoing import CsvRecording, Outgoing, Recording
from twinmesh_cli.recording import TIME_UNITS, Mapping, MetricColumn, RecordingError
from twinmesh_cli.session import Session, fail, run

_PARQUET = {".parquet", ".pq"}


def load(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CSV files with a heading line, or Parquet files (.parquet).", exists=True, dir_okay=False
        ),
    ],
    device: Annotated[str, typer.Option(help="Id of the device that all rows belong to.")] = "",
    device_column: Annotated[str, typer.Option(help="Column that holds the device's id instead.")] = "",
    time_column: Annotated[
        str, typer.Option(help="Column of event times, ISO 8601 or timestamps; without a zone UTC.")
    ] = "time",
    time_unit: Annotated[
        str, typer.Option(help="Times are numbers of these since 1970: s, ms, us or ns.")
    ] = "",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=METRIC[:KIND[:UNIT]]; repeatable. Without any, every other column is a metric: in "
            "CSV a double, in Parquet of the column's own kind."
        ),
    ] = None,
    metric_column: Annotated[
        str,
        typer.Option(help="Column that names each row's metric; --metric is then NAME=METRIC[:KIND[:UNIT]]."),
    ] = "",
    value_column: Annotated[str, typer.Option(help="Column of the values, with --metric-column.")] = "",
    delimiter: Annotated[str, typer.Option(help="What separates the columns of CSV.")] = ",",
    missing: Annotated[
        list[str] | None,
        typer.Option(
            help="What cells without a value hold, such as NaN; repeatable. Empty ones and nulls hold none."
        ),
    ] = None,
    device_type: Annotated[
        str, typer.Option(help="Make absent devices, of this type; makes the type as well.")
    ] = "",
) -> None:
    """Load recordings as declared backfills. Running it again completes or adds nothing."""
    if time_unit not in {"", *TIME_UNITS}:
        fail(f"--time-unit {time_unit!r}: one of {', '.join(TIME_UNITS)} is expected")
    found = []
    for file in files:
        try:
            mapping = Mapping(
                time_column,
                (),
                device,
                device_column,
                {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter),
                tuple(missing or ()),
                metric_column,
                value_column,
                time_unit,
            )
            found.append((file, *_read(file, mapping, metric or [])))
        except (RecordingError, OSError, UnicodeDecodeError) as error:
            fail(str(error))

    async def load_all(session: Session) -> None:
        loads = [
            _Load(session=session, file=file, mapping=mapping, found=each) for file, mapping, each in found
        ]
        for each in loads:
            await each.prepare(device_type)
        for each in loads:
            await each.run()
        if any(each.refusals for each in loads):
            raise typer.Exit(1)

    run(load_all)


def _read(file: Path, mapping: Mapping, metrics: Sequence[str]) -> tuple[Mapping, Recording]:
    """Return how a file is read, and what was found in it.

    Raises:
        RecordingError: it does not fit.
    """
    if bool(mapping.device_id) == bool(mapping.device_column):
        raise RecordingError("say whose samples they are: either --device ID or --device-column COLUMN")
    if bool(mapping.metric_column) != bool(mapping.value_column):
        raise RecordingError("--metric-column and --value-column go together")
    if file.suffix.lower() in _PARQUET:
        # The library takes a moment to start, which other commands need not wait for.
        from twinmesh_cli import parquet_recording, parquet_rows  # noqa: PLC0415

        found = recording.parse_metric_options(metrics) or parquet_rows.metric_columns(file, mapping)
        mapping = replace(mapping, metrics=found)
        read: Recording = parquet_recording.ParquetRecording(file, mapping)
    else:
        mapping = replace(
            mapping, metrics=recording.parse_metric_options(metrics) or _csv_metrics(file, mapping)
        )
        read = CsvRecording(file, mapping)
    if not read.samples:
        raise RecordingError(f"{file} has no samples")
    return mapping, read


def _csv_metrics(file: Path, mapping: Mapping) -> tuple[MetricColumn, ...]:
    if mapping.metric_column:
        names = recording.metric_names(file, mapping)
    else:
        taken = {mapping.time_column, mapping.device_column}
        names = [name for name in recording.header(file, mapping.delimiter) if name not in taken]
    return tuple(MetricColumn(name, recording.metric_name(name)) for name in names)


class _Rate(ProgressColumn):
    """Samples per second, of those that were sent: what the server had is passed over in no time."""

    def render(self, task: Task) -> Text:
        seconds, sent = task.finished_time or task.elapsed, task.fields["sent"]
        return Text(f"{sent / seconds:,.0f}/s" if seconds and sent else "-")


class _Load:
    """One run of a file's load.

    Attributes:
        refusals: how often samples were refused, by why.
    """

    def __init__(self, *, session: Session, file: Path, mapping: Mapping, found: Recording) -> None:
        self._session = session
        self._file = file
        self._mapping = mapping
        self._recording = found
        self._ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(session.channel)
        self._devices: Any = device_service_pb2_grpc.DeviceServiceStub(session.channel)
        self._device_types: Any = device_type_service_pb2_grpc.DeviceTypeServiceStub(session.channel)
        self._stored = 0
        self.refusals: dict[str, int] = {}

    async def prepare(self, device_type: str) -> None:
        """Make the devices, if that is asked for; end the program when the file does not fit them."""
        if device_type:
            await self._make_devices(device_type)
        await self._require_fit()

    async def run(self) -> None:
        """Send what the server has not, and say what became of it."""
        backfills = await self._declare_backfills()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(self._file.name, total=self._recording.samples, sent=0)

            def durable(outgoing: Outgoing, result: ingest_service_pb2.BatchResult | None) -> None:
                sent = progress.tasks[0].fields["sent"] + outgoing.samples
                progress.update(task, advance=outgoing.samples, sent=sent)
                self._count(outgoing, result)

            await LoadStream(
                session=self._session,
                writer_id=recording.writer_id(self._file, self._mapping),
                recording=self._recording,
                backfills=backfills,
                on_durable=durable,
            ).run(lambda outgoing: progress.advance(task, outgoing.samples))
        print(f"{self._recording.samples} samples read; {self._stored} samples were new and are stored")
        for reason, number in sorted(self.refusals.items()):
            print(f"  refused {number} times: {reason}")

    def _count(self, outgoing: Outgoing, result: ingest_service_pb2.BatchResult | None) -> None:
        self._stored += outgoing.samples
        if result is None:
            return
        self._stored -= result.refused_samples
        if result.message:
            self._refused(result.message, 1)
        for refusal in result.refusals:
            told = f"{refusal.message} ({refusal.device_id} {refusal.metric})".replace(" )", ")")
            self._refused(told, max(refusal.sample_count, 1))

    def _refused(self, why: str, number: int) -> None:
        self.refusals[why] = self.refusals.get(why, 0) + number

    async def _make_devices(self, device_type: str) -> None:
        metrics = [column.definition for column in self._mapping.metrics]
        await self._unless_there(
            self._device_types.CreateDeviceType,
            device_type_service_pb2.CreateDeviceTypeRequest(
                device_type=device_type_service_pb2.DeviceType(id=device_type, metrics=metrics)
            ),
        )
        for device_id in self._recording.reported:
            device = device_service_pb2.Device(id=device_id, device_type_id=device_type)
            await self._unless_there(
                self._devices.CreateDevice, device_service_pb2.CreateDeviceRequest(device=device)
            )

    async def _require_fit(self) -> None:
        """End the program when devices are absent or report something else than the file.

        Refusals are outcomes: a batch that was refused stays refused when it is sent again.
        """
        kinds_of_type: dict[str, dict[str, int]] = {}
        for device_id, columns in self._recording.reported.items():
            device = await self._find(
                self._devices.GetDevice,
                device_service_pb2.GetDeviceRequest(id=device_id),
                absent=f"device {device_id!r} does not exist; create it, or add --device-type TYPE",
            )
            if device.status == device_service_pb2.DEVICE_STATUS_DISABLED:
                fail(f"device {device_id!r} is disabled")
            type_id = device.device_type_id
            if type_id not in kinds_of_type:
                device_type = await self._find(
                    self._device_types.GetDeviceType,
                    device_type_service_pb2.GetDeviceTypeRequest(id=type_id),
                    absent=f"device type {type_id!r} of device {device_id!r} does not exist any more",
                )
                kinds_of_type[type_id] = {metric.name: metric.kind for metric in device_type.metrics}
            for column in columns:
                if kinds_of_type[type_id].get(column.metric) != column.definition.kind:
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

    async def _declare_backfills(self) -> dict[int, str]:
        backfills = {}
        for span, (first, last) in self._recording.ranges.items():
            request = ingest_service_pb2.CreateBackfillRequest()
            request.start_time.FromDatetime(first)
            request.end_time.FromDatetime(last + timedelta(microseconds=1))
            backfills[span] = (await self._session.call(self._ingest.CreateBackfill, request)).id
        return backfills
