"""`twinmesh export`: the samples of devices as a file, whole or not at all."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from twinmesh.twin.v1 import history_service_pb2, history_service_pb2_grpc
from twinmesh_cli.options import Devices, End, Metrics, Start, fill_range
from twinmesh_cli.received_file import receive


class ExportFormat(StrEnum):
    """How the file is written."""

    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


_SUFFIXES = {
    ".csv": ExportFormat.CSV,
    ".parquet": ExportFormat.PARQUET,
    ".arrow": ExportFormat.ARROW,
    ".arrows": ExportFormat.ARROW,
}


def export(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    device: Devices,
    metric: Metrics = None,
    start: Start = None,
    end: End = None,
    export_format: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="How to write it; as the file's name ends, without it."),
    ] = None,
) -> None:
    """Write all samples of devices to a file: CSV, Parquet or an Arrow stream, of one moment's snapshot.

    The file is there when all of it is; a time without a zone is UTC.
    """
    chosen = export_format or _SUFFIXES.get(file.suffix.lower())
    if chosen is None:
        raise typer.BadParameter(
            f"say --format, or name the file .csv, .parquet or .arrow, not {file.name!r}"
        )
    request = history_service_pb2.ExportHistoryRequest(
        ids=dict.fromkeys(device),
        metrics=metric or [],
        format=history_service_pb2.ExportFormat.Value(f"EXPORT_FORMAT_{chosen.name}"),
    )
    fill_range(request, start, end)
    receive(
        file,
        lambda session: history_service_pb2_grpc.HistoryServiceStub(session.channel).ExportHistory,
        request,
    )
