"""Files that a gateway streams, written whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from twinmesh_cli.session import Session, fail, run

# It ends with its token, so it gets one that is hardly older than a minute: they are good for fifteen.
_LASTS_S = 13 * 60.0


def receive(file: Path, method: Callable[[Session], Any], request: Any) -> None:
    """Write what an rpc streams to a file, which is there when all of it is; says how large it is.

    Args:
        file: where to.
        method: returns the rpc.
        request: of it.
    """
    try:
        with whole_file(file) as out:
            size = run(lambda session: received(session, method(session), request, out))
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror or error}")
    print(f"{size:,} bytes in {file}", file=sys.stderr)


async def received(session: Session, method: Any, request: Any, out: IO[bytes]) -> int:
    """Write what an rpc streams as it comes and return its size in bytes.

    Raises:
        grpc.aio.AioRpcError: as the gateway or the service answered.
    """
    metadata = (("authorization", f"Bearer {await session.credential(lasts_s=_LASTS_S)}"),)
    size = 0
    columns = (TextColumn("exporting"), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        async for piece in method(request, metadata=metadata):
            out.write(piece.data)
            size += len(piece.data)
            progress.update(task, completed=size)
    return size


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file beside it that takes its name when all is written, and else is gone."""
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
