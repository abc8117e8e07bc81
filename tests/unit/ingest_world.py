"""An intake with its neighbours in memory: one tenant, `acme`, with two pumps."""

from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ingest_svc.asset_cache import AssetCache
from ingest_svc.child_cache import ChildCache
from ingest_svc.columns import SentColumns
from ingest_svc.intake import Door, Intake, Origin
from ingest_svc.limiter import Limiter
from ingest_svc.message_intake import MessageIntake
from ingest_svc.profile import DeviceProfile, MetricProfile
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from ingest_svc.window import LiveWindow, TimeWindow
from meshkit.errors import DomainError, dependency_unavailable
from meshkit.identity import Principal, PrincipalKind
from meshkit.testing.clock import ManualClock
from telemetry_store.columns import Kind
from telemetry_store.requests import MessageChunk, RequestIdentity, WriteRequest, WriterIdentity
from telemetry_store.series import SeriesKey

NOW = 1_700_000_000_000_000
METRICS = {"x": MetricProfile(Kind.DOUBLE, "°C")}
PUMP = DeviceProfile(device_type_id="pump", enabled=True, metrics=METRICS)
OFF = DeviceProfile(device_type_id="pump", enabled=False, metrics=METRICS)


class Assets:
    """Profiles of one tenant's devices; counts the questions."""

    def __init__(self) -> None:
        self.devices = {"pump-1": PUMP, "pump-2": PUMP}
        self.children: dict[tuple[str, str], str] = {}  # by gateway and name
        self.asked: list[int] = []
        self.children_asked: list[list[str]] = []
        self.away = False

    async def fetch_assets(self, tenant: str, asset_ids: Sequence[str]) -> Collection[str]:
        if self.away:
            raise dependency_unavailable("asset_svc")
        return [asset_id for asset_id in asset_ids if asset_id == "hall"]

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        self.asked.append(len(device_ids))
        if self.away:
            raise dependency_unavailable("asset_svc")
        return {device_id: self.devices[device_id] for device_id in device_ids if device_id in self.devices}

    async def fetch_children(self, tenant: str, gateway_id: str, names: Sequence[str]) -> Mapping[str, str]:
        self.children_asked.append(list(names))
        if self.away:
            raise dependency_unavailable("asset_svc")
        return {
            name: self.children[gateway_id, name] for name in names if (gateway_id, name) in self.children
        }


class ChunkChecks:
    """Says of every chunk what it was told to say."""

    def __init__(self) -> None:
        self.answer: DomainError | None = None

    async def check(self, tenant: str, chunks: Sequence[MessageChunk]) -> list[DomainError | None]:
        return [self.answer] * len(chunks)


class SeriesIds:
    """Gives ids in the order of the questions, and remembers all."""

    def __init__(self) -> None:
        self.made: dict[SeriesKey, int] = {}

    async def resolve(
        self, tenant: str, keys: Sequence[SeriesKey], metrics: Sequence[MetricProfile]
    ) -> npt.NDArray[np.int32]:
        return np.array([self.made.setdefault(key, len(self.made)) for key in keys], np.int32)


class Backfills:
    """Knows one backfill, of 1970."""

    async def window(self, tenant: str, backfill_id: str) -> TimeWindow:
        return TimeWindow(f"backfill {backfill_id},", 0, 1_000)


def unlimited() -> Limiter:
    """Return a limiter that knows of no limits."""
    return Limiter(limits_of=lambda _: None, source=cast(Any, None), on_limited=lambda _: None)


class World:
    """An intake and all around it."""

    def __init__(self) -> None:
        self.assets = Assets()
        self.clock = ManualClock(NOW)
        self.cache = ProfileCache(source=self.assets, clock=self.clock)
        self.series_ids = SeriesIds()
        self.chunks = ChunkChecks()
        window = LiveWindow(late_us=3_600_000_000, future_us=1_000)
        self.children = ChildCache(source=self.assets, clock=self.clock)
        self.messages = MessageIntake(
            profiles=self.cache,
            children=self.children,
            series_finder=self.series_ids,
            chunks=self.chunks,
        )
        self.intake = Intake(
            profiles=self.cache,
            assets=AssetCache(source=self.assets, clock=self.clock),
            series_finder=self.series_ids,
            backfills=Backfills(),
            live_window=lambda _: window,
            messages=self.messages,
        )
        self.table = SeriesTable()
        self.table.define([(0, SeriesDefinition("pump-1", "x", Kind.DOUBLE, ""))])

    def taking(
        self, columns: SentColumns, identity: WriterIdentity | None = None
    ) -> Coroutine[Any, Any, WriteRequest]:
        return self.intake.take_columns(
            origin(identity or WriterIdentity("w", 7, 3)),
            columns,
            self.table,
            all_or_nothing=False,
            received_us=self.clock.now_us(),
        )

    async def readings(
        self,
        *readings: Reading,
        identity: RequestIdentity | WriterIdentity | None = None,
        backfill_id: str = "",
        permissions: Sequence[str] = ("telemetry:write",),
    ) -> WriteRequest:
        return await self.intake.take_readings(
            origin(identity, permissions),
            readings,
            all_or_nothing=False,
            backfill_id=backfill_id,
            received_us=self.clock.now_us(),
        )


def origin(
    identity: RequestIdentity | WriterIdentity | None, permissions: Sequence[str] = ("telemetry:write",)
) -> Origin:
    principal = Principal("acme", "hub", PrincipalKind.API_KEY, frozenset(permissions))
    return Origin(principal, identity, None, Door.UNARY)
