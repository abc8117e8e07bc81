"""What the launcher and compose's step `seed` put into tenant demo."""

import asyncpg
import pytest

from meshkit.embedded import PartFailedError
from meshkit.testing.database import TestDatabase
from twinmesh_cli import seeding
from twinmesh_cli.database import is_tenant_deleted
from twinmesh_cli.seeding import Seeded, issue_simulator_key, seed
from twinmesh_cli.settings import LauncherSettings

_SECRET = "A" * 43


@pytest.fixture(autouse=True)
def roles(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test database's roles have passwords of their own."""
    monkeypatch.setattr(seeding, "role_url", lambda _, *, root, role: database.url(role))


async def test_a_deleted_tenant_gets_neither_samples_nor_a_key(database: TestDatabase) -> None:
    settings = LauncherSettings()
    connection = await asyncpg.connect(database.admin_url)
    try:
        made = await seed(settings, admin_url=database.admin_url, mesh_secret=_SECRET)
        assert (made.user_created, made.tenant_deleted) == (True, False)
        assert await connection.fetchval("SELECT count(*) FROM asset.device") > 0
        assert not await is_tenant_deleted(database.admin_url, "demo")
        # As when an operator had it deleted.
        await connection.execute(
            "UPDATE auth.tenant "
            "SET suspend_time = now(), delete_time = now(), export_digest = repeat('0', 64)"
        )
        await connection.execute("DELETE FROM asset.device; DELETE FROM auth.user_account")
        again = await seed(settings, admin_url=database.admin_url, mesh_secret=_SECRET)
        assert await is_tenant_deleted(database.admin_url, "demo")
        assert again == Seeded(user_created=False, password=None, tenant_deleted=True)
        assert await connection.fetchval("SELECT count(*) FROM asset.device") == 0
        with pytest.raises(PartFailedError, match="tenant 'demo' is deleted"):
            await issue_simulator_key(settings, admin_url=database.admin_url, mesh_secret=_SECRET)
        assert await connection.fetchval("SELECT count(*) FROM auth.api_key") == 0
    finally:
        await connection.close()
