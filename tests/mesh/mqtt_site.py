"""Where devices speak MQTT: devices and API keys in a mesh, and what becomes of their messages."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from meshkit.testing.mesh import Mesh
from tests.mesh.mqtt_clients import Login

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Key:
    """An API key."""

    id: str
    secret: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is kept of a message that could not be stored as it was."""

    reason: str
    message: str
    principal: str
    payload: bytes
    trace_id: str | None


@dataclass(frozen=True)
class MqttSite:
    """A tenant's devices in a mesh.

    Attributes:
        mesh: where.
        admin: client of the tenant's administrator.
        key: with which devices come.
        database: connection of somebody who may read everything.
        authority: certificate that vouches for the broker's; None: without TLS.
    """

    mesh: Mesh
    admin: httpx.AsyncClient
    key: Key
    database: asyncpg.Connection
    authority: Path | None = None

    def login(self, user: str, *, key: Key | None = None) -> Login:
        """Return a log-in with the site's key unless told otherwise."""
        return Login(self.mesh.mqtt_port, user, (key or self.key).secret, self.authority)

    async def device(self, device_type: str = "temperature-sensor") -> str:
        """Make a device and return its id."""
        device = f"mqtt-{uuid.uuid4().hex}"
        made = await self.admin.post("/v1/devices", json={"id": device, "deviceTypeId": device_type})
        made.raise_for_status()
        return device

    async def device_type(self, **rest: Any) -> str:
        """Make a device type and return its id."""
        device_type = f"mqtt-{uuid.uuid4().hex}"
        made = await self.admin.post("/v1/deviceTypes", json={"id": device_type, **rest})
        assert made.status_code == 200, made.text
        return device_type

    async def new_key(self, permission: str = "telemetry:write", **rest: str) -> Key:
        """Make an API key of one permission."""
        return await new_key(self.admin, permission, **rest)

    async def revoke(self, key: Key) -> None:
        """Revoke an API key."""
        (await self.admin.delete(f"/v1/apiKeys/{key.id}")).raise_for_status()

    async def history(self, device: str) -> Mapping[str, Sequence[tuple[int, Any]]]:
        """Return what is stored of a device: times, microseconds since the epoch, and values by metric."""
        answer = await self.admin.get(f"/v1/twins/{device}/history")
        answer.raise_for_status()
        return {
            metric["metric"]: list(zip(map(int, metric["times"]), _values(metric), strict=True))
            for metric in answer.json()["metrics"]
        }

    async def values(self, device: str, metric: str = "temperature") -> list[Any]:
        """Return the stored values of a metric, in the order of their times."""
        return [value for _, value in (await self.history(device)).get(metric, [])]

    async def until_values(self, device: str, *expected: Any, metric: str = "temperature") -> None:
        """Wait until so many values are stored as are expected; they must be those."""

        async def are_there() -> bool:
            return len(await self.values(device, metric)) >= len(expected)

        await until(are_there, f"{device} has {expected}")
        assert await self.values(device, metric) == list(expected)

    async def dead_letters(self, device: str) -> list[DeadLetter]:
        """Return the dead letters that name a device, the oldest first."""
        rows = await self.database.fetch(
            "SELECT reason, message, principal, payload, trace_id FROM telemetry.dead_letter"
            " WHERE $1 = ANY (device_ids) ORDER BY dead_letter_id",
            device,
        )
        return [DeadLetter(*row) for row in rows]

    async def until_dead_letters(self, device: str, count: int) -> list[DeadLetter]:
        """Wait for dead letters that name a device; there must be no more."""

        async def are_there() -> bool:
            return len(await self.dead_letters(device)) >= count

        await until(are_there, f"{device} has {count} dead letters")
        letters = await self.dead_letters(device)
        assert len(letters) == count, letters
        return letters


@asynccontextmanager
async def mqtt_site(
    mesh: Mesh, admin: httpx.AsyncClient, *, database_url: str, authority: Path | None = None
) -> AsyncIterator[MqttSite]:
    """Make a site with a key of its own.

    Args:
        mesh: where.
        admin: client of its tenant's administrator.
        database_url: of somebody who may read everything.
        authority: as in MqttSite.
    """
    database = await asyncpg.connect(database_url)
    try:
        yield MqttSite(mesh, admin, await new_key(admin, "telemetry:write"), database, authority)
    finally:
        await database.close()


async def new_key(admin: httpx.AsyncClient, permission: str, **rest: str) -> Key:
    """Make an API key of one permission; `rest` as in CreateApiKeyRequest."""
    made = await admin.post("/v1/apiKeys", json={"displayName": "mqtt", "permissions": [permission], **rest})
    made.raise_for_status()
    return Key(made.json()["id"], made.json()["secret"])


async def until(condition: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 60) -> None:
    """Wait for something that another process brings about."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - the mesh tells nobody
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


def _values(metric: Mapping[str, Any]) -> Sequence[Any]:
    kinds = ("doubleValues", "intValues", "boolValues", "stringValues", "pointValues")
    return next((metric[kind] for kind in kinds if metric[kind]), [])
