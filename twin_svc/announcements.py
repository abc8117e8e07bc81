"""Commits as they are announced on the bus."""

from collections.abc import Awaitable, Callable

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from meshkit.db import DATABASE_ERRORS
from telemetry_store.announcement import SUBJECT, Announcement, decode

_log = structlog.get_logger()


async def follow_announcements(
    client: Client, *, take: Callable[[Announcement], Awaitable[None]], missed: Callable[[], None]
) -> None:
    """Take what is announced as long as the bus is open.

    Args:
        client: connected.
        take: called with each announcement, one at a time.
        missed: called instead when one is not understood, or cannot be taken now.
    """

    async def on_message(message: Msg) -> None:
        try:
            announcement = decode(message.data)
        except ValueError as error:
            _log.warning("announcement not understood", subject=message.subject, error=str(error))
            missed()
            return
        try:
            await take(announcement)
        except DATABASE_ERRORS as error:
            _log.info("announcement not taken", instance=announcement.instance, error=repr(error))
            missed()

    await client.subscribe(SUBJECT, cb=on_message)
