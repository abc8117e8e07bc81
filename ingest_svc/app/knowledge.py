"""What ingest_svc knows of asset_svc's devices and of twins, and how it hears of changes."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nats.aio.client import Client

from ingest_svc.app.common import SERVICE, Common
from ingest_svc.asset_cache import AssetCache
from ingest_svc.asset_client import AssetProfiles
from ingest_svc.child_cache import ChildCache
from ingest_svc.frontier_reports import follow_reports
from ingest_svc.placements import Placements
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.store import PlacementStore
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.twin_frontiers import TwinFrontiers
from meshkit import bus
from meshkit.asset_changes import follow_changes
from meshkit.client import service_channel
from meshkit.revocation_announcements import listen
from meshkit.tasks import background


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the other parts are given.

    Attributes:
        profiles: of devices.
        tenants: of devices.
        children: of gateways.
        assets: there are.
        frontiers: up to where twins have taken commits.
        nats: the bus.
    """

    profiles: ProfileCache
    tenants: TenantCache
    children: ChildCache
    assets: AssetCache
    frontiers: TwinFrontiers
    nats: Client


@asynccontextmanager
async def running(common: Common) -> AsyncIterator[Knowledge]:
    """Know them while the context is open."""
    clock = common.clock
    placements = Placements(store=PlacementStore(pool=common.pool), clock=clock)
    async with (
        service_channel(
            common.settings.asset_address, service="asset_svc", identity=common.door.identity
        ) as channel,
        background(placements.keep_saving(), name="save-placements"),
        ProfileCache(
            source=(source := AssetProfiles(channel=channel)), clock=clock, on_read=placements.note
        ) as profiles,
        TenantCache(source=source, clock=clock) as tenants,
        ChildCache(source=source, clock=clock) as children,
        AssetCache(source=source, clock=clock) as assets,
        TwinFrontiers() as frontiers,
        _bus(common, profiles, children, frontiers) as nats,
    ):
        yield Knowledge(profiles, tenants, children, assets, frontiers, nats)


@asynccontextmanager
async def _bus(
    common: Common, profiles: ProfileCache, children: ChildCache, frontiers: TwinFrontiers
) -> AsyncIterator[Client]:
    """Hear of changes while the context is open; after an interruption nothing that was known is trusted."""

    def forget(tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
        profiles.forget(tenant, device_ids=device_ids, device_type_ids=device_type_ids)
        children.forget(tenant, device_ids=device_ids)

    def distrust() -> None:
        profiles.distrust()
        children.distrust()

    async def subscribe(client: Client) -> None:
        await follow_changes(client, forget=forget, forget_all=distrust)
        await follow_reports(client, frontiers=frontiers)
        await listen(client, common.door.revocations)

    def reconnected() -> None:
        distrust()
        frontiers.listen_anew()

    url = common.settings.nats_url.get_secret_value()
    async with bus.connection(url, name=SERVICE, on_connect=subscribe, on_reconnect=reconnected) as client:
        yield client
