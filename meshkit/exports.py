"""Files for callers: few at once, fairly between tenants, in pieces, and never whole by mistake."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, TypeVar

from google.api import httpbody_pb2

from meshkit.errors import DomainError, ResourceExhausted
from meshkit.shares import Shares
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MOST_EXPORTS = 4
_PIECE_BYTES = 512 * 1024
_RETRY_AFTER_S = 10.0
_INCOMPLETE = "the export ended before its end; start it again"
_Part = TypeVar("_Part")
_Part_contra = TypeVar("_Part_contra", contravariant=True)


class ExportWriter(Protocol[_Part_contra]):
    """Writes one file; what the methods return, laid end to end, is the file."""

    def write(self, part: _Part_contra) -> bytes:
        """Take a part and return what of the file is ready; it may be nothing yet."""
        ...

    def end(self) -> bytes:
        """Return the rest of the file."""
        ...

    def failed(self, reason: str, message: str) -> bytes:
        """Return what makes a file that is not whole invalid, if its form does not already."""
        ...


class ExportSlots:
    """Makes files, MOST_EXPORTS at once, of which a tenant alone gets 2, and there is one left for others."""

    def __init__(self) -> None:
        self._running = Shares(MOST_EXPORTS)

    async def file(
        self, tenant: str, parts: AsyncGenerator[_Part, None], writer: ExportWriter[_Part]
    ) -> AsyncGenerator[bytes, None]:
        """Yield a file in pieces of _PIECE_BYTES at the most.

        Args:
            tenant: whose.
            parts: what is to be written, some at a time; closed in the end.
            writer: writes it, beside the event loop.

        Raises:
            ResourceExhausted: EXPORTS_BUSY, before anything was yielded.
        """
        has_begun = False
        with self._admitted(tenant):
            try:
                async with aclosing(parts):
                    async for part in parts:
                        for piece in _pieces(await asyncio.to_thread(writer.write, part)):
                            has_begun = True
                            yield piece
                for piece in _pieces(await asyncio.to_thread(writer.end)):
                    yield piece
            except Exception as error:
                mark = writer.failed(*_told(error)) if has_begun else b""
                if mark:
                    yield mark
                raise

    @contextmanager
    def _admitted(self, tenant: str) -> Iterator[None]:
        own = self._running.of(tenant)
        if not self._running.take(tenant, 1):
            if self._running.used == MOST_EXPORTS:
                raise _busy(
                    f"all {MOST_EXPORTS} exports of this process are running; retry when one has ended",
                    limit_name="exports",
                    used=MOST_EXPORTS,
                )
            raise _busy(
                f"your tenant has {own} of the {MOST_EXPORTS} exports of this process, and what is free is"
                " kept for other tenants; retry when one of yours has ended, or ask for more in one",
                limit_name="exports_of_tenant",
                used=own,
            )
        try:
            yield
        finally:
            self._running.give_back(tenant, 1)


def _busy(message: str, *, limit_name: str, used: int) -> ResourceExhausted:
    return ResourceExhausted(
        message,
        reason=ErrorReason.ERROR_REASON_EXPORTS_BUSY,
        metadata={"limit_name": limit_name, "limit": str(used), "used": str(used)},
        retry_after_s=_RETRY_AFTER_S,
    )


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE_BYTES):
        yield data[start : start + _PIECE_BYTES]


def _told(error: Exception) -> tuple[str, str]:
    """Return an error's reason and message as a caller may read them."""
    if isinstance(error, DomainError):
        return ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_"), error.message
    return "INTERRUPTED", _INCOMPLETE


async def file_answer(
    context: Any, pieces: AsyncGenerator[bytes, None], *, name: str, content_type: str
) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
    """Yield a file as an rpc answers it, and over HTTP the gateway.

    Args:
        context: of the rpc.
        pieces: of the file; closed in the end.
        name: under which it is stored.
        content_type: of the file.
    """
    async with aclosing(pieces):
        # A file of no bytes has a name and a type as well.
        first = await anext(pieces, b"")
        await context.send_initial_metadata((("content-disposition", f'attachment; filename="{name}"'),))
        yield httpbody_pb2.HttpBody(content_type=content_type, data=first)
        async for piece in pieces:
            yield httpbody_pb2.HttpBody(content_type=content_type, data=piece)


def marked_line(reason: str, message: str) -> bytes:
    """Return a line that is no row of CSV: a file that stops early would look whole."""
    text = message.replace("\n", " ")
    return f"# NOT WHOLE: {reason}: {text}\n".encode()
