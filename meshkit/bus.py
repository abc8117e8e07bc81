"""The connection to NATS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import structlog
from nats.aio.client import Client

_log = structlog.get_logger()


@asynccontextmanager
async def connection(url: str, *, name: str) -> AsyncIterator[Client]:
    """Connect and stay connected, reconnecting for as long as the context is open.

    Messages are only hints: whoever subscribes reads the database when it missed some.
    """

    async def on_error(error: Exception) -> None:
        _log.warning("bus error", error=str(error))

    async def on_disconnect() -> None:
        _log.warning("bus disconnected")

    async def on_reconnect() -> None:
        _log.info("bus reconnected")

    client = await nats.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,
        error_cb=on_error,
        disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect,
    )
    try:
        yield client
    finally:
        await client.close()
