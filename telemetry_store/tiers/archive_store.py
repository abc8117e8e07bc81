"""Objects in a folder or an object store, by fsspec: written once under a new name, never changed.

fsspec's calls block, so they run in threads of their own; a store that hangs takes no more of
them than there are. Failures come as two errors: a store that does not answer, and an object
that is not there or ends early.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec.implementations.local import LocalFileSystem

from telemetry_store.tiers.archive_block import CorruptObjectError

Result = TypeVar("Result")
READ_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 600.0  # Of one object, which holds about 130 MB at the most.
_TRIES = 3
_THREADS = 8
# By protocol: what keeps a call to the store from waiting longer than ours, and lists from being remembered.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 2}},
    },
    "abfs": {"use_listings_cache": False},
    "file": {"use_listings_cache": False, "auto_mkdir": True},
}


class StoreError(Exception):
    """The object store does not answer, or refuses."""


class ArchiveStore:
    """One folder of objects.

    Args:
        url: of the folder, for fsspec: a path, file://, s3://, abfs:// and what else is installed.
        threads: runs the calls; as many are under way as it has.
        read_timeout_s: how long one read may take, retries and all.
        write_timeout_s: the same of a write.

    Raises:
        ValueError: nobody knows the URL's protocol.
    """

    def __init__(
        self,
        url: str,
        *,
        threads: ThreadPoolExecutor,
        read_timeout_s: float = READ_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        protocol = fsspec.core.split_protocol(url)[0] or "file"
        try:
            self._files, root = fsspec.core.url_to_fs(url, **_OPTIONS.get(protocol, {}))
        except ImportError as error:
            raise ValueError(f"TWINMESH_ARCHIVE_URL: {error}") from error
        self._root = root.rstrip("/")
        self._threads = threads
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s

    def reader(self, path: str, size: int) -> io.RawIOBase:
        """Return an object to read within `run`; each read is a call of its own to the store."""
        return _Object(lambda start, end: self._range(path, start, end), size)

    async def read(self, path: str, start: int, end: int) -> bytes:
        """Return bytes start to end, end not included, of an object.

        Raises:
            StoreError: the store does not answer.
            CorruptObjectError: there are fewer, or the object is not there.
        """
        return await self.run(lambda: self._range(path, start, end))

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run work with what `reader` gave in a thread, again if the store fails.

        Raises:
            StoreError: the store does not answer.
            CorruptObjectError: as `work` says.
        """
        return await self._tried(work, self._read_timeout_s)

    async def write(self, path: str, source: Path) -> None:
        """Store a file under a new name; when it returns, the object survives a loss of power.

        Raises:
            StoreError: the store does not answer; there may be a part of the object, or all.
        """
        await self._tried(lambda: self._put(path, source), self._write_timeout_s)

    async def below(self, folder: str) -> list[str]:
        """Return the paths of all objects below a folder, like it below the archive's URL.

        Raises:
            StoreError: the store does not answer.
        """
        return await self._tried(lambda: self._find(folder), self._read_timeout_s)

    async def modified(self, path: str) -> datetime | None:
        """Return when an object was written; None: it is not there.

        Raises:
            StoreError: the store does not answer.
        """
        return await self._tried(lambda: self._modified(path), self._read_timeout_s)

    async def remove(self, path: str) -> None:
        """Delete an object; one that is not there is as good.

        Raises:
            StoreError: the store does not answer.
        """
        await self._tried(lambda: self._remove(path), self._read_timeout_s)

    async def _tried(self, work: Callable[[], Result], timeout_s: float) -> Result:
        tries = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
            retry=tenacity.retry_if_exception_type(StoreError),
            reraise=True,
        )

        async def done() -> Result:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _told, work)

        try:
            # A call that hangs is not tried again: it would take a second thread.
            async with asyncio.timeout(timeout_s):
                return await tries(done)
        except TimeoutError:
            raise StoreError(f"no answer within {timeout_s:g} s") from None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _range(self, path: str, start: int, end: int) -> bytes:
        try:
            content: bytes = self._files.cat_file(self._at(path), start=start, end=end)
        except FileNotFoundError as error:
            raise CorruptObjectError("the object is not there") from error
        except Exception as error:
            raise StoreError(repr(error)) from error
        if len(content) != end - start:
            raise CorruptObjectError(f"bytes {start} to {end} are not there")
        return content

    def _put(self, path: str, source: Path) -> None:
        self._files.put_file(str(source), self._at(path))
        if isinstance(self._files, LocalFileSystem):
            _sync(Path(self._at(path)), Path(self._root))

    def _find(self, folder: str) -> list[str]:
        return [name.removeprefix(f"{self._root}/") for name in self._files.find(self._at(folder))]

    def _modified(self, path: str) -> datetime | None:
        try:
            modified: datetime = self._files.modified(self._at(path))
        except FileNotFoundError:
            return None
        return modified

    def _remove(self, path: str) -> None:
        try:
            self._files.rm_file(self._at(path))
        except FileNotFoundError:
            return


@asynccontextmanager
async def archive_store(url: str, **timeouts: float) -> AsyncIterator[ArchiveStore | None]:
    """Open the store of a URL while the context is open; none if the URL is empty.

    Args:
        url: as in ArchiveStore, or "".
        timeouts: as in ArchiveStore.
    """
    if not url:
        yield None
        return
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="archive")
    try:
        yield ArchiveStore(url, threads=threads, **timeouts)
    finally:
        # A call that hangs must not keep the process from ending its other things.
        threads.shutdown(wait=False, cancel_futures=True)


def _told(work: Callable[[], Result]) -> Result:
    """Do work in its thread; whatever a store's library raises becomes a StoreError."""
    try:
        return work()
    except (StoreError, CorruptObjectError):
        raise
    except Exception as error:
        raise StoreError(repr(error)) from error


def _sync(path: Path, root: Path) -> None:
    """Bring a file and the folders that lead to it to the disk."""
    for each in (path, *path.parents):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if each == root:
            return


class _Object(io.RawIOBase):
    """An object of known size as a file that can be read at any place."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read = read
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._size if size is None or size < 0 else min(self._place + size, self._size)
        if end <= self._place:
            return b""
        content = self._read(self._place, end)
        self._place = end
        return content
