"""What tenants say about how long is kept what is theirs."""

from collections.abc import Mapping
from datetime import timedelta

import asyncpg

from telemetry_store.storage_policies import STORAGE_POLICIES, Retention, retention_of


async def raw_retentions(pool: asyncpg.Pool) -> dict[str, timedelta]:
    """Return how long those tenants keep raw messages that say so."""
    rows = await pool.fetch(
        "SELECT tenant_id, raw_retention FROM telemetry.ingest_policy WHERE raw_retention IS NOT NULL"
    )
    return {row["tenant_id"]: row["raw_retention"] for row in rows}


async def retentions(
    pool: asyncpg.Pool, installation: Retention, *, has_archive: bool
) -> dict[str, Retention]:
    """Return how long those tenants keep what that say so.

    Args:
        pool: of the maintenance role.
        installation: what holds where they say nothing.
        has_archive: there is an archive to go to.
    """
    return {
        row.tenant: retention_of(row, installation, has_archive=has_archive)
        for row in await STORAGE_POLICIES.read_all(pool)
    }


def age_by_tenant(kept_by_tenant: Mapping[str, Retention], age: str) -> dict[str, timedelta]:
    """Return one age of those tenants that have it.

    Args:
        kept_by_tenant: how long tenants keep what.
        age: its name, of storage_policies.AGES.
    """
    return {
        tenant: found
        for tenant, retention in kept_by_tenant.items()
        if (found := getattr(retention, age)) is not None
    }
