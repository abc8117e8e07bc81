"""What all parts of ingest_svc are given."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from ingest_svc.config import IngestSettings
from ingest_svc.metrics import IngestMetrics
from meshkit import db
from meshkit.access import AuthDoor, access
from meshkit.clock import Clock, SystemClock
from meshkit.metrics import meter
from meshkit.present_settings import PresentSettings

SERVICE = "ingest_svc"


@dataclass(frozen=True, slots=True)
class Common:
    """What all parts are given.

    Attributes:
        settings: of the process.
        clock: of the process.
        door: knows callers, by auth_svc.
        pool: connections to PostgreSQL for commits and short answers.
        raw_pool: others for long answers, which hold none that commits need.
        database_check: proves that PostgreSQL answers.
        metrics: of the process.
    """

    settings: IngestSettings
    clock: Clock
    door: AuthDoor
    pool: asyncpg.Pool
    raw_pool: asyncpg.Pool
    database_check: db.DatabaseCheck
    metrics: IngestMetrics


@asynccontextmanager
async def opened(settings: IngestSettings) -> AsyncIterator[Common]:
    """Open what all parts are given while the context is open."""
    clock = SystemClock()
    database_url = PresentSettings(settings, clock=clock).of(lambda now: now.database_url)
    async with (
        access(settings, service=SERVICE, clock=clock) as door,
        db.pool(database_url, application=SERVICE) as pool,
        db.pool(database_url, application=f"{SERVICE} raw", max_size=2) as raw_pool,
        db.database_check(database_url, application=SERVICE) as database_check,
    ):
        yield Common(settings, clock, door, pool, raw_pool, database_check, IngestMetrics(meter()))
