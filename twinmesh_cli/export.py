"""`twinmesh export`: the samples of devices as a file, whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from twinmesh.twin.v1 import history_service_pb2, history_service_pb2_grpc
from twinmesh_cli.options import Devices, End, Metrics, Start, fill_range
from twinmesh_cli.session import Session, fail, run


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
    try:
        with _whole(file) as out:
            size = run(lambda session: _receive(session, request, out))
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror or error}")
    print(f"{size:,} bytes in {file}", file=sys.stderr)


async def _receive(
    session: Session, request: history_service_pb2.ExportHistoryRequest, out: IO[bytes]
) -> int:
    """Write the file as it comes and return its size in bytes."""
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(session.channel)
    metadata = (("authorization", f"Bearer {await session.credential()}"),)
    size = 0
    columns = (TextColumn("exporting"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        async for piece in stub.ExportHistory(request, metadata=metadata):
            out.write(piece.data)
            size += len(piece.data)
            progress.update(task, completed=size)
    return size


@contextmanager
def _whole(file: Path) -> Iterator[IO[bytes]]:
    """A file beside it that takes its name when all is written, and else is gone."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        # mkstemp lets nobody else read; a file that is written plainly has the umask's rights.
        mask = os.umask(0)
        os.umask(mask)
        fresh.chmod(0o666 & ~mask)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
