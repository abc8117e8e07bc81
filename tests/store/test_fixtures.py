import asyncpg

from meshkit.testing.database import TestDatabase


async def test_each_test_has_a_migrated_database_of_its_own(database: TestDatabase) -> None:
    connection = await asyncpg.connect(database.admin_url)
    try:
        owners = await connection.fetch("SELECT DISTINCT owner FROM mesh.migration")
        await connection.execute("CREATE TABLE public.mine (n integer)")
    finally:
        await connection.close()
    assert {row["owner"] for row in owners} <= {"auth", "asset", "telemetry"}
