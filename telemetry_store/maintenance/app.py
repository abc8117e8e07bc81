"""The only place where the maintenance worker's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from meshkit import db
from meshkit.client import fetch_keys_from, service_channel
from meshkit.clock import SystemClock
from meshkit.identity import ServiceTokens, TokenVerifier
from meshkit.server import running_server
from telemetry_store.maintenance.backfills import expire_backfills
from telemetry_store.maintenance.config import MaintenanceSettings
from telemetry_store.maintenance.dead_letters import expire_dead_letters
from telemetry_store.maintenance.instances import close_dead_instances
from telemetry_store.maintenance.latest import keep_latest
from telemetry_store.maintenance.limits import forget_limit_hits, forget_unused_limits
from telemetry_store.maintenance.partitions import (
    drop_request_windows,
    ensure_request_windows,
    ensure_segment_days,
)
from telemetry_store.maintenance.policies import raw_retentions, retentions
from telemetry_store.maintenance.raw_messages import ensure_raw_days, expire_raw_messages
from telemetry_store.maintenance.retention import SealedMonths, expire_events, expire_samples
from telemetry_store.maintenance.storage_room import RoomGuard
from telemetry_store.maintenance.storage_usage import StorageUsage
from telemetry_store.maintenance.worker import Step, Worker

SERVICE = "maintenance"
_STORAGE_LOCK_KEY = 0x73746F72  # "stor"


def steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what maintenance does for those who write and read: name, seconds between runs, work."""
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


def storage_steps(pool: asyncpg.Pool, settings: MaintenanceSettings) -> tuple[Step, ...]:
    """Return what takes long and has time: it must not keep the other steps from running."""
    months = SealedMonths(pool=pool, late_window_days=settings.late_window_days)
    return (
        Step("storage_usage", 10, StorageUsage(pool=pool).measure),
        Step("samples_kept", 10, partial(_expire_samples, pool, settings)),
        Step("sealed_months_kept", 600, months.drop_empty),
    )


async def _expire_samples(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    kept, kept_by_tenant = settings.retention, await retentions(pool, settings.retention, has_archive=False)
    await expire_samples(pool, kept=kept, kept_by_tenant=kept_by_tenant)
    await expire_events(pool, kept=kept, kept_by_tenant=kept_by_tenant)


async def _expire_raw_messages(pool: asyncpg.Pool, settings: MaintenanceSettings) -> None:
    await expire_raw_messages(
        pool, kept=settings.raw_messages_kept, kept_by_tenant=await raw_retentions(pool)
    )


@asynccontextmanager
async def app(settings: MaintenanceSettings) -> AsyncIterator[int]:
    """Run the worker while the context is open; yields its health port."""
    clock = SystemClock()
    tokens = ServiceTokens(service=SERVICE, mesh_secret=settings.root_secret, clock=clock)
    async with (
        db.pool(settings.database_url, application=SERVICE) as pool,
        service_channel(settings.auth_address, tokens=tokens) as auth_channel,
    ):
        worker = Worker(pool=pool, steps=steps(pool, settings))
        storage = Worker(pool=pool, steps=storage_steps(pool, settings), lock_key=_STORAGE_LOCK_KEY)
        guard = RoomGuard(
            pool=pool,
            data_dir=settings.database_data_dir,
            reserved=settings.disk_reserved_bytes,
            most_bytes=settings.database_max_bytes,
        )
        async with (
            worker.running(),
            storage.running(),
            guard.looking(),
            running_server(
                listen=settings.listen,
                registrations=(),
                verifier=TokenVerifier(
                    fetch_keys=fetch_keys_from(auth_channel), service_tokens=tokens, clock=clock
                ),
                checks={
                    "postgresql": lambda: pool.fetchval("SELECT 1"),
                    "maintenance": worker.check,
                    "storage": storage.check,
                    "storage room": guard.check,
                },
            ) as port,
        ):
            yield port
