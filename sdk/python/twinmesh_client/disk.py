"""Files that are what was written, whenever the power goes: small ones, and ones that only grow.

What returns without an error is on the disk. Whoever writes does so inside of `errors_told`.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twinmesh_client.errors import SpoolDamaged, SpoolError, SpoolFull
from twinmesh_client.records import Record, is_torn, records

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell a full disk, which may have room later, from one that failed.

    Raises:
        SpoolFull: the disk is full.
        SpoolError: the disk failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise SpoolFull(f"the spool's disk is full: {error}") from error
        raise SpoolError(f"the spool's disk failed: {error}; nothing that was spooled is given up") from error


def open_to_append(path: Path) -> int:
    """Return the descriptor of a file, made when it is not there, whose folder is not synced yet."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def append(descriptor: int, data: bytes) -> None:
    """Write and fsync; when that fails, the file is as it was."""
    before = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def records_of(path: Path, *, is_last: bool) -> Iterator[tuple[int, Record]]:
    """Yield a file's records with their ends, but for what was being written at a crash.

    Args:
        path: the file.
        is_last: may have been written to at a crash; the others have whole records only.

    Raises:
        SpoolDamaged: something else than records.
        SpoolError: the disk failed.
    """
    with errors_told():
        data = path.read_bytes()
    end = 0
    for end, record in records(data):
        yield end, record
    if end < len(data) and not (is_last and is_torn(data, end)):
        raise SpoolDamaged(path, end, "not a whole record, and others follow")


def cut_off(path: Path, end: int) -> None:
    """Shorten a file to its whole records.

    Raises:
        SpoolError: the disk failed.
    """
    if path.stat().st_size == end:
        return
    with errors_told():
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, end)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Replace a small file: afterwards it is the new one or the old one, never a part."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(content).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    sync_folder(path.parent)


def read_file(path: Path) -> dict[str, Any] | None:
    """Return what a small file holds, None when it is not there.

    Raises:
        SpoolDamaged: it holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SpoolDamaged(path, 0, "not JSON") from error
    if not isinstance(content, dict):
        raise SpoolDamaged(path, 0, "not a JSON object")
    return content


def sync_folder(folder: Path) -> None:
    """Fsync which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
