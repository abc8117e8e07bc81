"""The connection to NATS."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from nats.aio.client import Client

_log = structlog.get_logger()


@asynccontextmanager
async def connection(
    url: str, *, name: str, on_reconnect: Callable[[], None] = lambda: None
) -> AsyncIterator[Client]:
    """Connect and stay connected, reconnecting for as long as the context is open.

    Messages are only hints: whoever subscribes reads the database when it missed some.

    Args:
        url: nats:// URL with credentials.
        name: shown in the server's list of connections.
        on_reconnect: called after each reconnection, when messages may have been missed.
    """

    async def on_error(error: Exception) -> None:
        _log.warning("bus error", error=str(error))

    async def on_disconnect() -> None:
        if not client.is_closed and not client.is_draining:
            _log.warning("bus disconnected")

    async def reconnected() -> None:
        _log.info("bus reconnected")
        on_reconnect()

    client = Client()
    await client.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        error_cb=on_error,
        disconnected_cb=on_disconnect,
        reconnected_cb=reconnected,
    )
    try:
        yield client
    finally:
        await client.close()


def connected(client: Client) -> Callable[[], Awaitable[None]]:
    """Return the health check of a connection: it raises ConnectionError while the bus is away."""

    async def check() -> None:
        if not client.is_connected:
            raise ConnectionError("not connected")

    return check
