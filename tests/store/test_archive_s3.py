"""The archive in an object store that speaks S3."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import asyncpg
import pytest
import s3fs
import tenacity

from meshkit.embedded import free_ports
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.tiers.archive_orphans import delete_orphans, expire_archive
from telemetry_store.tiers.archive_reader import ArchiveReader
from telemetry_store.tiers.archive_store import StoreError, archive_store
from telemetry_store.tiers.archiving import archive_day
from tests.store.archive import DAY, SealedDays, maintenance, pairs, read, samples_of, span

BUCKET = "telemetry"
URL = f"s3://{BUCKET}/mesh"
NOTHING = timedelta(0)


@tenacity.retry(retry=tenacity.retry_if_exception_type(OSError), stop=tenacity.stop_after_delay(60))
def connected(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
        return


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Start a server that speaks S3; returns its URL."""
    (port,) = free_ports(1)
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        connected(port)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """Make a bucket, and the environment by which services find it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(use_listings_cache=False)
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    return files


async def test_days_move_to_s3_are_read_replaced_and_deleted(
    database: TestDatabase, days: SealedDays, query: asyncpg.Pool, bucket: s3fs.S3FileSystem
) -> None:
    series = await days.series("pump-1")
    await days.seal(series, samples_of(Kind.DOUBLE, [(1, 1.0), (2, 2.0)]), 5)
    async with archive_store(URL) as store, maintenance(database) as pool:
        assert store is not None
        reader = ArchiveReader(store)
        assert await archive_day(pool, store, "demo", DAY)
        (first,) = await days.manifest()
        assert bucket.size(f"{BUCKET}/mesh/{first['path']}") == first["bytes"]
        assert pairs(await read(query, [span(series)], reader)) == [(1, 1.0), (2, 2.0)]

        await days.seal(series, samples_of(Kind.DOUBLE, [(2, 20.0), (3, 3.0)]), 6)
        assert await archive_day(pool, store, "demo", DAY)
        assert pairs(await read(query, [span(series)], reader)) == [(1, 1.0), (2, 20.0), (3, 3.0)]
        left = f"{BUCKET}/mesh/{first['path']}.parquet"
        bucket.pipe_file(left, b"never named")
        await delete_orphans(pool, store, grace=timedelta(days=1))
        assert len(bucket.find(f"{BUCKET}/mesh")) == 3
        await delete_orphans(pool, store, grace=NOTHING)
        (second,) = await days.manifest()
        assert bucket.find(f"{BUCKET}/mesh") == [f"{BUCKET}/mesh/{second['path']}"]

        await expire_archive(pool, kept=timedelta(days=1), kept_by_tenant={})
        await delete_orphans(pool, store, grace=NOTHING)
        assert bucket.find(f"{BUCKET}/mesh") == []


async def test_a_bucket_that_is_not_there_is_told(
    database: TestDatabase, days: SealedDays, bucket: s3fs.S3FileSystem
) -> None:
    await days.seal(await days.series("pump-1"), samples_of(Kind.DOUBLE, [(1, 1.0)]), 5)
    async with archive_store(f"{URL[:5]}elsewhere") as store, maintenance(database) as pool:
        assert store is not None
        with pytest.raises(StoreError, match="bucket does not exist"):
            await archive_day(pool, store, "demo", DAY)
    assert await days.sealed() == 1
