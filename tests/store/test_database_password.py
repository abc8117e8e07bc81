"""A database password that is replaced while a service runs: new connections take the new one."""

from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from pydantic import Field, SecretStr

from meshkit import db
from meshkit.config import Settings
from meshkit.present_settings import REREAD_EVERY_S, PresentSettings
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase


class _Settings(Settings):
    service_database_url: SecretStr = Field(description="PostgreSQL.")

    @property
    def database_url(self) -> str:
        return self.service_database_url.get_secret_value()


async def test_new_connections_log_in_with_the_new_password(
    database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"rotated_{database.admin_url.rsplit('/', 1)[1]}"
    parts = urlsplit(database.admin_url)
    host = parts.netloc.rpartition("@")[2]
    file = tmp_path / "url"

    def write(password: str) -> None:
        file.write_text(urlunsplit(parts._replace(netloc=f"{role}:{password}@{host}")))

    admin = await asyncpg.connect(database.admin_url)
    try:
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
        write("first")
        monkeypatch.setenv("TWINMESH_SERVICE_DATABASE_URL_FILE", str(file))
        clock = ManualClock(0)
        present = PresentSettings(_Settings(), clock=clock)
        url = present.of(lambda now: now.database_url)
        async with (
            db.pool(url, application="rotated", min_size=1, max_size=2) as pool,
            pool.acquire() as old,
        ):
            await admin.execute(f"ALTER ROLE {role} PASSWORD 'second'")
            write("second")
            assert await old.fetchval("SELECT 1") == 1, "a connection that is open goes on"
            with pytest.raises(asyncpg.InvalidPasswordError):
                await pool.acquire()
            clock.advance(seconds=REREAD_EVERY_S)
            async with pool.acquire() as new:
                assert await new.fetchval("SELECT current_user") == role
    finally:
        await admin.execute(f"DROP ROLE IF EXISTS {role}")
        await admin.close()
