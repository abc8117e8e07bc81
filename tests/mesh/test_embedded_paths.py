"""The embedded servers in homes with names as people give them."""

from pathlib import Path

import asyncpg
import nats

from meshkit.embedded import EmbeddedNats, EmbeddedPostgres


async def test_a_home_may_have_any_name(short_home: Path) -> None:
    home = short_home / "Kühlräume & pumps (2026) 'a' \"b\" 泵 $x %d #1"
    async with EmbeddedNats(home=home) as server, EmbeddedPostgres(home=home) as postgres:
        client = await nats.connect(server.url)
        await client.close()
        connection = await asyncpg.connect(postgres.admin_url)
        await connection.close()
