"""What follows from asset_svc's list of deleted devices: certificates end, and log-ins become outdated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from meshkit.errors import Unavailable

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DeletedDevice:
    """A device that is gone.

    Attributes:
        number: its place in the list.
        tenant: whose it was.
        id: its id, which another device may have by now.
        create_us: when it was made, microseconds since the epoch, which tells the two apart.
    """

    number: int
    tenant: str
    id: str
    create_us: int


class DeletedList(Protocol):
    """asset_svc's list."""

    async def deleted_after(self, number: int) -> Sequence[DeletedDevice]:
        """Return those after a number, in their order, not necessarily all.

        Raises:
            Unavailable: asset_svc does not answer.
        """
        ...


class Place(Protocol):
    """How far the list was read."""

    async def get(self) -> int:
        """Return the number up to which all is done."""
        ...

    async def advance(self, number: int) -> None:
        """Note that all is done up to a number."""
        ...


class Certificates(Protocol):
    """Ends certificates."""

    async def revoke_of_device(self, tenant: str, device_id: str, *, made_until_us: int) -> None:
        """Revoke those that were issued to a device made at a time or before."""
        ...


class DeletedDevices:
    """Revokes certificates of devices that are gone.

    The place in the list is kept, so nothing is missed while this service or asset_svc is away; what is read
    twice, as by two processes, changes nothing.

    Args:
        listed: the list.
        place: how far it was read.
        certificates: ends them.
    """

    def __init__(self, *, listed: DeletedList, place: Place, certificates: Certificates) -> None:
        self._listed = listed
        self._place = place
        self._certificates = certificates
        self._is_away = False

    async def refresh(self) -> None:
        """Do what is new in the list; while asset_svc does not answer, nothing."""
        try:
            await self._catch_up()
        except Unavailable as error:
            if not self._is_away:
                _log.warning("deleted devices cannot be read; they are later", error=str(error))
            self._is_away = True
        else:
            self._is_away = False

    async def _catch_up(self) -> None:
        while found := await self._listed.deleted_after(await self._place.get()):
            for device in found:
                await self._certificates.revoke_of_device(
                    device.tenant, device.id, made_until_us=device.create_us
                )
            await self._place.advance(found[-1].number)


class DeviceDeletions:
    """Tells which tenants have deleted devices since log-ins were told theirs.

    Each process reads the list for itself, from where the oldest log-in that is connected began: there is
    nothing to keep, and what happened while no process ran is found.

    Args:
        listed: the list.
        place: how far any process has read it.
    """

    def __init__(self, *, listed: DeletedList, place: Place) -> None:
        self._listed = listed
        self._place = place
        self._after = 0
        self._read = 0
        self._last: dict[str, int] = {}

    async def place(self) -> int:
        """Return a number; whoever asks from now on which devices there are is told of none up to it."""
        return max(await self._place.get(), self._read)

    async def last_by_tenant(self, *, after: int) -> Mapping[str, int]:
        """Return the number of each tenant's last deletion, of those after a number; maybe of earlier ones.

        Raises:
            Unavailable: asset_svc does not answer.
        """
        if not self._last or after < self._after:
            self._after = self._read = after
        while found := await self._listed.deleted_after(self._read):
            for device in found:
                self._last[device.tenant] = max(device.number, self._last.get(device.tenant, 0))
            self._read = found[-1].number
        return self._last
