"""Connections to a test's database, by role."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from tests.store.archive import SealedDays
from tests.store.writing import admin


@pytest.fixture
async def connection(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """Return a connection of the migrator, who may do and sees everything."""
    async with admin(database) as opened:
        yield opened


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    """Return a pool of the maintenance role."""
    async with db.pool(database.url("twinmesh_maintenance"), application="test") as opened:
        yield opened


@pytest.fixture
async def query(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    """Return a pool of the role that answers twin_svc's requests."""
    async with db.pool(database.url("twinmesh_twin_query"), application="query") as opened:
        yield opened


@pytest.fixture
def days(connection: asyncpg.Connection) -> SealedDays:
    """Return what puts sealed days into the database."""
    return SealedDays(connection)
