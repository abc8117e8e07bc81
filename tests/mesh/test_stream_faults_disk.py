"""PostgreSQL's disk is full for a while: gateways are told to wait, and nothing acknowledged is lost."""

import asyncio
import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshkit.testing.mesh import Mesh, start_mesh
from tests.mesh.stream_site import MIB, SOAK, Site, sending, site

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not SOAK, reason="takes minutes; make soak runs it"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system for PostgreSQL needs root"),
]

FAULTS = 50
_DISK = "1g"


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A small file system where the mesh will put PostgreSQL's data."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-disk-"))
    home.chmod(0o755)
    data = home / "home" / "postgres"
    data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=0700", "tmpfs", str(data)], check=True)
    yield data
    subprocess.run(["umount", str(data)], check=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def small_mesh(disk: Path) -> Iterator[Mesh]:
    # PostgreSQL itself is to meet the end of its disk.
    started = start_mesh(disk.parent.parent, TWINMESH_DISK_RESERVED_BYTES="0")
    yield started
    started.twinmesh("down")


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no room for another page while the block runs."""
    filler = disk / "filler"
    try:
        _write_until_full(filler)
        yield
    finally:
        filler.unlink(missing_ok=True)


def _write_until_full(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@pytest.fixture
async def small_site(small_mesh: Mesh, chance: random.Random) -> AsyncIterator[Site]:
    token, key = small_mesh.log_in(), small_mesh.api_key()
    async with site(small_mesh, token, key=key, chance=chance) as made:
        yield made


async def test_what_is_acknowledged_is_stored_once(small_site: Site, disk: Path) -> None:
    clients = [await small_site.client(run_length=100) for _ in range(4)]
    async with sending(clients):
        for _ in range(FAULTS):
            await small_site.oracle.progress(small_site.chance.randint(50, 200))
            with filled(disk):
                await asyncio.gather(*(client.until_refused() for client in clients))
        await small_site.oracle.progress(50)
    assert small_site.oracle.everything_acknowledged()
    await small_site.judge()
