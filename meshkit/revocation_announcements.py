"""Announcements that something was revoked, from auth_svc to everybody.

A contract between services that, unlike those in proto/, travels over NATS: subject `auth.revoked`, no
payload. Whoever hears it reads the list: an announcement that is lost costs a second, and one that is forged
costs nothing.
"""

from nats.aio.client import Client
from nats.aio.msg import Msg

from meshkit.revocations import Revocations

_SUBJECT = "auth.revoked"


async def announce(bus: Client) -> None:
    """Tell every process that there are new revocations, which are committed.

    Raises:
        nats.errors.Error, OSError: the bus does not take it.
    """
    await bus.publish(_SUBJECT)


async def listen(bus: Client, revocations: Revocations) -> None:
    """Have the list read at once when something is announced, as long as the bus is open."""

    async def on_announcement(_: Msg) -> None:
        revocations.read_soon()

    await bus.subscribe(_SUBJECT, cb=on_announcement)
