"""Whether there is room for new data: read again every second, as maintenance finds it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog

from meshkit.db import DATABASE_ERRORS
from meshkit.errors import DomainError
from meshkit.tasks import background
from telemetry_store.storage_room import Room

_log = structlog.get_logger()
_LOOK_EVERY_S = 1.0


class StorageRoom:
    """Knows whether new data are refused. While PostgreSQL is away what was known last holds.

    Args:
        source: tells what maintenance found last; None: nobody measures.
    """

    def __init__(self, *, source: Callable[[], Awaitable[Room | None]]) -> None:
        self._source = source
        self._room: Room | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Look once, if PostgreSQL is there, and go on looking."""
        await self._try_to_look()
        await self._stack.enter_async_context(background(self._follow(), name="storage-room"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        await self._stack.aclose()

    @property
    def is_full(self) -> bool:
        """Say whether new data are refused."""
        return self._room is not None and self._room.refused

    def refusal(self) -> DomainError | None:
        """Return what senders of new data are told; None: they may send."""
        return self._room.error() if self._room is not None and self._room.refused else None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._try_to_look()

    async def _try_to_look(self) -> None:
        try:
            self._room = await self._source()
        except DATABASE_ERRORS as error:
            _log.warning("it is not known whether there is room; what was known holds", error=repr(error))
