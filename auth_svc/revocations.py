"""Revocations: how long they are kept, and how the mesh hears of them."""

from datetime import datetime

import nats.errors
import structlog
from nats.aio.client import Client

from meshkit.clock import MICROS_PER_SECOND, to_datetime
from meshkit.revocation_announcements import announce
from meshkit.revocations import KEPT_S, Revocations

_log = structlog.get_logger()


def kept_until(now_us: int) -> datetime:
    """Return when no token is left that was issued before now, microseconds since the epoch."""
    return to_datetime(now_us + KEPT_S * MICROS_PER_SECOND)


class Announcer:
    """Makes known what was revoked in a transaction that is committed; never fails.

    Best effort: whoever hears nothing reads the list within a second.

    Args:
        revocations: what this process knows.
        client: connected to NATS, None when there is none.
    """

    def __init__(self, *, revocations: Revocations, client: Client | None) -> None:
        self._revocations = revocations
        self._client = client

    async def __call__(self) -> None:
        """Have this process know at once, and tell the others."""
        try:
            await self._revocations.poll()
        except Exception as error:  # The database's as well.
            _log.warning("revocation is known here within a second only", error=repr(error))
        if self._client is None:
            return
        try:
            await announce(self._client)
        except (nats.errors.Error, OSError) as error:
            _log.warning("revocation not announced", error=repr(error))
