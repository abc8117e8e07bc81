"""The only place where twin_svc's parts meet."""

import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from nats.aio.client import Client

from meshkit import bus, db
from meshkit.access import access
from meshkit.asset_changes import follow_changes
from meshkit.client import counting_connections, service_channel
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.exports import MOST_EXPORTS
from meshkit.metrics import meter, observe_audit, observe_caches, observe_connections
from meshkit.present_settings import PresentSettings
from meshkit.revocation_announcements import listen
from meshkit.server import Registration, running_server
from telemetry_store.feed import snapshot
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import archive_store
from twin_svc.announcements import follow_announcements
from twin_svc.asset_client import AssetDevices
from twin_svc.changes import Changes
from twin_svc.config import TwinSettings
from twin_svc.contract import CALLERS
from twin_svc.devices import WatchedDevices
from twin_svc.exports import Exports
from twin_svc.fleet import Fleet
from twin_svc.follower import FeedFollower
from twin_svc.frontier_reports import FrontierReporter
from twin_svc.metrics import TwinMetrics
from twin_svc.registry import DeviceRegistry
from twin_svc.servicer import EventServicer, TwinServicer
from twin_svc.servicers.history import HistoryServicer
from twin_svc.servicers.storage import StorageServicer
from twin_svc.watches import Watches
from twinmesh.twin.v1 import (
    event_service_pb2_grpc,
    history_service_pb2_grpc,
    storage_service_pb2_grpc,
    twin_service_pb2_grpc,
)

SERVICE = "twin_svc"


@asynccontextmanager
async def app(settings: TwinSettings) -> AsyncIterator[int]:
    """Run twin_svc while the context is open; yields its port."""
    clock = SystemClock()
    present = PresentSettings(settings, clock=clock)
    database_url = present.of(lambda now: now.database_url)
    async with (
        db.pool(database_url, application=SERVICE) as query_pool,
        db.database_check(database_url, application=SERVICE) as database_check,
        # One connection follows the feed, and one reads the series that announcements name.
        db.pool(present.of(lambda now: now.feed_url), application=f"{SERVICE} feed", max_size=2) as feed_pool,
        # Exports last minutes; they must not take the connections of short answers.
        db.pool(
            database_url, application=f"{SERVICE} export", min_size=0, max_size=MOST_EXPORTS
        ) as export_pool,
        archive_store(settings.archive_url) as store,
        access(settings, service=SERVICE, clock=clock) as door,
        service_channel(settings.asset_address, service="asset_svc", identity=door.identity) as asset_channel,
        counting_connections(
            settings.ingest_address, identity=door.identity, holder=uuid.uuid4()
        ) as connections,
    ):
        source = AssetDevices(channel=asset_channel)
        registry = DeviceRegistry(source=source, clock=clock)
        fleet = Fleet()
        changes = Changes()
        devices = WatchedDevices(source=source, changed=changes.notify)
        follower = FeedFollower(
            snapshot=partial(snapshot, feed_pool),
            fleet=fleet,
            changes=changes,
            poll_s=settings.feed_poll_ms / 1000,
        )
        metrics = TwinMetrics(meter())
        watches = Watches(
            fleet=fleet,
            feed=follower,
            devices=devices,
            changes=changes,
            clock=clock,
            on_told=metrics.watcher_told,
        )
        metrics.observe(fleet=fleet, follower=follower, watches=watches)
        observe_caches(meter(), devices=registry.lookups, tokens=door.verifier.lookups)
        observe_audit(meter(), door.audit)
        observe_connections(meter(), connections)

        def forget(tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
            registry.forget(tenant, device_ids=device_ids, device_type_ids=device_type_ids)
            devices.forget(tenant, device_ids=device_ids, device_type_ids=device_type_ids)

        def forget_all() -> None:
            registry.forget_all()
            devices.forget_all()

        async def subscribe(client: Client) -> None:
            await follow_changes(client, forget=forget, forget_all=forget_all)
            await follow_announcements(client, take=follower.announced, missed=follower.look)
            await listen(client, door.revocations)

        def reconnected() -> None:
            forget_all()
            follower.look()

        tenant_snapshot = partial(db.tenant_transaction, query_pool, isolation="repeatable_read")
        archive = ArchiveReader(store)
        future_us = settings.future_window_minutes * 60 * MICROS_PER_SECOND
        servicer = TwinServicer(
            fleet=fleet,
            registry=registry,
            watches=watches,
            tenant_snapshot=tenant_snapshot,
            clock=clock,
            future_us=future_us,
            archive=archive,
        )
        history_servicer = HistoryServicer(
            registry=registry,
            tenant_snapshot=tenant_snapshot,
            exports=Exports(
                tenant_snapshot=partial(db.tenant_transaction, export_pool, isolation="repeatable_read"),
                archive=archive,
            ),
            clock=clock,
            future_us=future_us,
            archive=archive,
        )
        async with (
            bus.connection(
                settings.nats_url.get_secret_value(),
                name=SERVICE,
                on_connect=subscribe,
                on_reconnect=reconnected,
            ) as client,
            follower.following(),
            FrontierReporter(bus=client, feed=follower, replica=secrets.token_hex(8)),
            running_server(
                listen=settings.listen,
                registrations=[
                    Registration(
                        "twinmesh.twin.v1.TwinService",
                        twin_service_pb2_grpc.add_TwinServiceServicer_to_server,
                        servicer,
                    ),
                    Registration(
                        "twinmesh.twin.v1.EventService",
                        event_service_pb2_grpc.add_EventServiceServicer_to_server,
                        EventServicer(registry=registry, assets=source, tenant_snapshot=tenant_snapshot),
                    ),
                    Registration(
                        "twinmesh.twin.v1.HistoryService",
                        history_service_pb2_grpc.add_HistoryServiceServicer_to_server,
                        history_servicer,
                    ),
                    Registration(
                        "twinmesh.twin.v1.StorageService",
                        storage_service_pb2_grpc.add_StorageServiceServicer_to_server,
                        StorageServicer(
                            devices=source,
                            tenant_snapshot=tenant_snapshot,
                            clock=clock,
                            effective=settings.effective,
                        ),
                    ),
                ],
                door=door,
                callers=CALLERS,
                checks={
                    "postgresql": database_check,
                    "feed": follower.check,
                },
                hints={"nats": bus.connected(client)},
                drain=watches.drain,
                connections=connections,
            ) as port,
        ):
            yield port
