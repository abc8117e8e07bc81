"""Announcements of changed devices and device types, from asset_svc to whoever remembers them.

A contract between services that, unlike those in proto/, travels over NATS: subject
`asset.changed.<tenant>`, payload {"devices": [ids], "device_types": [ids]}. A device
type stands for all of its devices. Best effort: whoever misses an announcement reads
again when its own time comes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

_log = structlog.get_logger()
_SUBJECT = "asset.changed."


@dataclass(frozen=True, slots=True)
class AssetChange:
    """What was created, changed or deleted in one tenant."""

    tenant: str
    device_ids: Sequence[str] = ()
    device_type_ids: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """The subject it is announced on."""
        return f"{_SUBJECT}{self.tenant}"

    @property
    def payload(self) -> bytes:
        """What is announced."""
        return json.dumps(
            {"devices": list(self.device_ids), "device_types": list(self.device_type_ids)}
        ).encode()

    @classmethod
    def parse(cls, subject: str, payload: bytes) -> Self:
        """Read an announcement.

        Raises:
            ValueError: the payload is not as this module writes it.
        """
        match json.loads(payload):
            case {"devices": list(device_ids), "device_types": list(device_type_ids)} if all(
                isinstance(id_, str) for id_ in (*device_ids, *device_type_ids)
            ):
                return cls(subject.removeprefix(_SUBJECT), device_ids, device_type_ids)
            case _:
                raise ValueError("not two lists of ids")


class Forget(Protocol):
    """Forgets devices by their own ids and by those of their types."""

    def __call__(self, tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
        """Forget them."""
        ...


async def publish_change(bus: Client, change: AssetChange) -> None:
    """Announce a change.

    Raises:
        nats.errors.Error, OSError: the bus does not take it.
    """
    await bus.publish(change.subject, change.payload)


async def follow_changes(bus: Client, *, forget: Forget, forget_all: Callable[[], None]) -> None:
    """Have forgotten what is announced as changed, in any tenant, as long as the bus is open.

    Args:
        bus: connected.
        forget: called with what an announcement names.
        forget_all: called instead when one is not understood: it may be about anything.
    """

    async def on_change(message: Msg) -> None:
        try:
            change = AssetChange.parse(message.subject, message.data)
        except ValueError as error:
            _log.warning("announcement not understood", subject=message.subject, error=repr(error))
            forget_all()
            return
        forget(change.tenant, device_ids=change.device_ids, device_type_ids=change.device_type_ids)

    await bus.subscribe(f"{_SUBJECT}*", cb=on_change)
