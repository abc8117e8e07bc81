"""Whether PostgreSQL answers, as services prove it for their health."""

from urllib.parse import urlsplit

import pytest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from meshkit import db
from meshkit.testing.database import TestDatabase
from meshkit.testing.line import FaultyLine


async def test_a_connection_that_has_gone_dumb_is_replaced(database: TestDatabase) -> None:
    url = urlsplit(database.url("twinmesh_asset"))
    assert url.hostname is not None
    assert url.port is not None
    async with FaultyLine(url.hostname, url.port).open() as line:
        through = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{line.port}").geturl()
        async with db.database_check(through, application="test") as check:
            await check()
            assert line.swallow() == 1
            with pytest.raises(db.DATABASE_ERRORS):
                await check()
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(db.DATABASE_ERRORS),
                stop=stop_after_delay(25),
                wait=wait_fixed(0.1),
            )
            async for attempt in retrying:
                with attempt:
                    await check()
