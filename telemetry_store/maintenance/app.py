"""The only place where the maintenance worker's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from meshkit import db
from meshkit.client import fetch_keys_from, service_channel
from meshkit.clock import SystemClock
from meshkit.identity import ServiceTokens, TokenVerifier
from meshkit.metrics import meter
from meshkit.server import running_server
from telemetry_store.maintenance.backfills import expire_backfills
from telemetry_store.maintenance.config import MaintenanceSettings
from telemetry_store.maintenance.dead_letters import expire_dead_letters
from telemetry_store.maintenance.instances import close_dead_instances
from telemetry_store.maintenance.latest import keep_latest
from telemetry_store.maintenance.limits import forget_limit_hits, forget_unused_limits
from telemetry_store.maintenance.metrics import observe_rollups
from telemetry_store.maintenance.partitions import (
    drop_request_windows,
    drop_segment_days,
    ensure_request_windows,
    ensure_segment_days,
)
from telemetry_store.maintenance.policies import raw_retentions
from telemetry_store.maintenance.raw_messages import ensure_raw_days, expire_raw_messages
from telemetry_store.maintenance.sealing import Sealing
from telemetry_store.maintenance.throttle import Throttle
from telemetry_store.maintenance.worker import Step, Worker
from telemetry_store.rollups.expiry import RollupsKept, expire_rollups
from telemetry_store.rollups.keeping import RollupKeeper
from telemetry_store.tiers.archive_orphans import delete_orphans
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import ArchiveStore, archive_store
from telemetry_store.tiers.archiving import archive_due
from telemetry_store.tiers.restoring import work_off_restores

SERVICE = "maintenance"
_ARCHIVE_LOCK_KEY = 0x61726368  # "arch"
_MOVING_LOCK_KEY = 0x6D6F7665  # "move"


def steps(pool: asyncpg.Pool, settings: MaintenanceSettings, *, rollups: RollupKeeper) -> tuple[Step, ...]:
    """Return all that is done quickly: name, seconds between runs, work."""
    return (
        Step(
            "segment_days",
            300,
            partial(ensure_segment_days, pool, late_window_days=settings.late_window_days),
        ),
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
        Step("rollups", 1, rollups.run),
        Step(
            "rollups_kept",
            300,
            partial(
                expire_rollups,
                pool,
                kept=RollupsKept(minutes=settings.minute_rollups_kept),
                kept_by_tenant={},
            ),
        ),
    )


def moving_steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what moves samples between tiers and may take long, beside the quick steps."""
    sealing = Sealing(pool=pool, seal_after=settings.seal_after, throttle=Throttle(pool=pool))
    return (
        Step("sealing", 1, sealing.turn),
        Step(
            "segment_days_kept",
            300,
            partial(drop_segment_days, pool, late_window_days=settings.late_window_days),
        ),
    )


async def _expire_raw_messages(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    await expire_raw_messages(
        pool, kept=settings.raw_messages_kept, kept_by_tenant=await raw_retentions(pool)
    )


def archive_steps(pool: asyncpg.Pool, store: ArchiveStore, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what moves samples to and from the archive, and may take long."""
    return (
        Step("restores", 2, partial(work_off_restores, pool, store)),
        Step(
            "archive",
            60,
            partial(archive_due, pool, store, after=settings.archive_after, after_by_tenant={}),
        ),
        Step("archive_orphans", 3600, partial(delete_orphans, pool, store, grace=settings.archive_grace)),
    )


@asynccontextmanager
async def app(settings: MaintenanceSettings) -> AsyncIterator[int]:
    """Run the worker while the context is open; yields its health port."""
    clock = SystemClock()
    tokens = ServiceTokens(service=SERVICE, mesh_secret=settings.root_secret, clock=clock)
    async with (
        db.pool(settings.database_url, application=SERVICE) as pool,
        service_channel(settings.auth_address, tokens=tokens) as auth_channel,
        archive_store(settings.archive_url) as store,
    ):
        rollups = RollupKeeper(
            pool=pool, minutes_kept=settings.minute_rollups_kept, archive=ArchiveReader(store)
        )
        observe_rollups(meter(), rollups)
        worker = Worker(pool=pool, steps=steps(pool, settings, rollups=rollups))
        archiver = Worker(
            pool=pool,
            steps=() if store is None else archive_steps(pool, store, settings),
            lock_key=_ARCHIVE_LOCK_KEY,
        )
        mover = Worker(pool=pool, steps=moving_steps(pool, settings), lock_key=_MOVING_LOCK_KEY)
        async with (
            worker.running(),
            mover.running(),
            archiver.running(),
            running_server(
                listen=settings.listen,
                registrations=(),
                verifier=TokenVerifier(
                    fetch_keys=fetch_keys_from(auth_channel), service_tokens=tokens, clock=clock
                ),
                checks={
                    "postgresql": lambda: pool.fetchval("SELECT 1"),
                    "maintenance": worker.check,
                    "archive": archiver.check,
                    "moving": mover.check,
                },
            ) as port,
        ):
            yield port
