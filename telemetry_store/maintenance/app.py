"""The only place where the maintenance worker's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from meshkit import db
from meshkit.access import access
from meshkit.client import fetch_closed_tenants_from, report_deleted_tenants_to
from meshkit.clock import SystemClock
from meshkit.metrics import meter, observe_audit
from meshkit.present_settings import PresentSettings
from meshkit.server import running_server
from meshkit.tenant_deletion import TenantSweep
from telemetry_store.maintenance.backfills import expire_backfills
from telemetry_store.maintenance.closed_tenants import SqlUserDoor, delete_tenant
from telemetry_store.maintenance.config import MaintenanceSettings
from telemetry_store.maintenance.dead_letters import expire_dead_letters
from telemetry_store.maintenance.instances import close_dead_instances
from telemetry_store.maintenance.latest import keep_latest
from telemetry_store.maintenance.limits import forget_limit_hits, forget_unused_limits
from telemetry_store.maintenance.metrics import observe_rollups
from telemetry_store.maintenance.partitions import (
    EmptySegmentDays,
    drop_request_windows,
    ensure_request_windows,
    ensure_segment_days,
)
from telemetry_store.maintenance.policies import age_by_tenant, raw_retentions, retentions
from telemetry_store.maintenance.raw_messages import ensure_raw_days, expire_raw_messages
from telemetry_store.maintenance.retention import SealedMonths, expire_events, expire_samples
from telemetry_store.maintenance.sealing import Sealing
from telemetry_store.maintenance.storage_room import RoomGuard
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.maintenance.worker import Step, Worker
from telemetry_store.rollups.expiry import expire_rollups
from telemetry_store.rollups.keeping import RollupKeeper
from telemetry_store.storage_policies import Retention
from telemetry_store.tiers.archive_orphans import delete_orphans, expire_archive
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import ArchiveStore, archive_store
from telemetry_store.tiers.archiving import archive_due
from telemetry_store.tiers.restoring import work_off_restores

SERVICE = "maintenance"
_MOVING_LOCK_KEY = 0x6D6F7665  # "move"
_ROLLUPS_LOCK_KEY = 0x726F6C6C  # "roll"
_ARCHIVE_LOCK_KEY = 0x61726368  # "arch"
_STORAGE_LOCK_KEY = 0x73746F72  # "stor"


def steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what is done quickly, for those who write and read: name, seconds between runs, work."""
    months = SealedMonths(pool=pool, late_window_days=settings.late_window_days)
    return (
        Step(
            "segment_days",
            300,
            partial(ensure_segment_days, pool, late_window_days=settings.late_window_days),
        ),
        Step("sealed_months", 300, months.ensure),
        Step("request_windows_ahead", 60, partial(ensure_request_windows, pool)),
        Step("request_windows_kept", 60, partial(drop_request_windows, pool, keep=settings.request_ids_kept)),
        Step("dead_instances", 2, partial(close_dead_instances, pool)),
        Step("latest", 1, partial(keep_latest, pool)),
        Step("backfills", 60, partial(expire_backfills, pool)),
        Step("limit_hits", 300, partial(forget_limit_hits, pool)),
        Step("unused_limits", 300, partial(forget_unused_limits, pool)),
        Step("dead_letters", 60, partial(expire_dead_letters, pool, keep=settings.dead_letters_kept)),
        Step("raw_days", 300, partial(ensure_raw_days, pool)),
        Step(
            "raw_messages_kept",
            300,
            partial(_expire_raw_messages, pool, settings),
        ),
    )


def moving_steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what moves samples between tiers and may take long, beside the quick steps."""
    sealing = Sealing(pool=pool, seal_after=settings.seal_after, throttle=Throttle(pool=pool))
    empty = EmptySegmentDays(pool=pool, late_window_days=settings.late_window_days)
    return (
        Step("sealing", 1, sealing.turn),
        Step("segment_days_kept", 300, empty.drop),
    )


def storage_steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what takes long and has time: it must not keep the other steps from running."""
    months = SealedMonths(pool=pool, late_window_days=settings.late_window_days)
    return (
        Step("storage_usage", 10, StorageUsage(pool=pool).measure),
        Step("samples_kept", 10, partial(_expire_samples, pool, settings)),
        Step("rollups_kept", 300, partial(_expire_rollups, pool, settings)),
        Step("sealed_months_kept", 600, months.drop_empty),
    )


async def _retentions(pool: asyncpg.Pool, settings: MaintenanceSettings) -> dict[str, Retention]:
    return await retentions(pool, settings.retention, has_archive=bool(settings.archive_url))


async def _expire_samples(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    kept, kept_by_tenant = settings.retention, await _retentions(pool, settings)
    await expire_samples(pool, kept=kept, kept_by_tenant=kept_by_tenant)
    await expire_events(pool, kept=kept, kept_by_tenant=kept_by_tenant)
    await expire_archive(
        pool, kept=kept.delete_after, kept_by_tenant=age_by_tenant(kept_by_tenant, "delete_after")
    )


async def _expire_rollups(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    await expire_rollups(pool, kept=settings.retention, kept_by_tenant=await _retentions(pool, settings))


async def _archive(pool: asyncpg.Pool, store: ArchiveStore, settings: MaintenanceSettings) -> None:
    await archive_due(
        pool,
        store,
        after=settings.archive_after,
        after_by_tenant=age_by_tenant(await _retentions(pool, settings), "archive_after"),
    )


async def _expire_raw_messages(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    await expire_raw_messages(
        pool, kept=settings.raw_messages_kept, kept_by_tenant=await raw_retentions(pool)
    )


def archive_steps(pool: asyncpg.Pool, store: ArchiveStore, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what moves samples to and from the archive, and may take long."""
    return (
        Step("restores", 2, partial(work_off_restores, pool, store)),
        Step("archive", 60, partial(_archive, pool, store, settings)),
        Step("archive_orphans", 3600, partial(delete_orphans, pool, store, grace=settings.archive_grace)),
    )


@asynccontextmanager
async def app(settings: MaintenanceSettings) -> AsyncIterator[int]:
    """Run the worker while the context is open; yields its health port."""
    clock = SystemClock()
    present = PresentSettings(settings, clock=clock)
    database_url = present.of(lambda now: now.database_url)
    async with (
        # A connection of each worker holds its lock while others work.
        db.pool(database_url, application=SERVICE, max_size=16) as pool,
        db.database_check(database_url, application=SERVICE) as database_check,
        access(settings, service=SERVICE, clock=clock) as door,
        archive_store(settings.archive_url) as store,
    ):
        rollups = RollupKeeper(
            pool=pool, minutes_kept=settings.minute_rollups_kept, archive=ArchiveReader(store)
        )
        observe_rollups(meter(), rollups)
        observe_audit(meter(), door.audit)
        worker = Worker(pool=pool, steps=steps(pool, settings))
        # By itself: under full speed it never catches up, and others' seconds would be its lag.
        keeper = Worker(pool=pool, steps=(Step("rollups", 0.5, rollups.run),), lock_key=_ROLLUPS_LOCK_KEY)
        mover = Worker(pool=pool, steps=moving_steps(pool, settings), lock_key=_MOVING_LOCK_KEY)
        archiver = Worker(
            pool=pool,
            steps=() if store is None else archive_steps(pool, store, settings),
            lock_key=_ARCHIVE_LOCK_KEY,
        )
        storage = Worker(pool=pool, steps=storage_steps(pool, settings), lock_key=_STORAGE_LOCK_KEY)
        closed = fetch_closed_tenants_from(door.auth_channel)
        sweep = TenantSweep(
            closed=closed,
            delete=partial(delete_tenant, pool, store),
            report=report_deleted_tenants_to(door.auth_channel),
        )
        guard = RoomGuard(
            pool=pool,
            data_dir=settings.database_data_dir,
            reserved=settings.disk_reserved_bytes,
            most_bytes=settings.database_max_bytes,
        )
        async with (
            worker.running(),
            keeper.running(),
            mover.running(),
            archiver.running(),
            storage.running(),
            guard.looking(),
            SqlUserDoor(pool=pool, closed=closed).kept(),
            sweep.sweeping(),
            running_server(
                listen=settings.listen,
                registrations=(),
                door=door,
                # Asked for its health only.
                callers={},
                checks={
                    "postgresql": database_check,
                    "maintenance": worker.check,
                    "rollups": keeper.check,
                    "moving": mover.check,
                    "archive": archiver.check,
                    "storage": storage.check,
                    "storage room": guard.check,
                },
            ) as port,
        ):
            yield port
