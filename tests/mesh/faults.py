"""What is done to the parts of a mesh to see whether anything is lost."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import asyncpg
import psutil

from meshkit.testing.mesh import Mesh

# Does something to a mesh; the generator decides whatever is random.
Fault = Callable[[Mesh, random.Random], Awaitable[None]]
_COPYING = (
    "SELECT pid FROM pg_stat_activity "
    "WHERE usename = 'twinmesh_ingest' AND state = 'active' AND query LIKE 'COPY %'"
)


def kill(*services: str) -> Fault:
    """Kill all processes of one of these services."""

    async def killed(mesh: Mesh, chance: random.Random) -> None:
        for process in await _processes(mesh, chance.choice(services)):
            process.kill()

    return killed


async def kill_one_of_two(mesh: Mesh, chance: random.Random) -> None:
    """Kill an ingest process; another one may be serving beside it."""
    chance.choice(await _processes(mesh, "ingest_svc")).kill()


async def kill_a_copying_backend(mesh: Mesh, chance: random.Random) -> None:
    """Kill a backend of PostgreSQL in the middle of a COPY; PostgreSQL then restarts all of them."""
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        while True:
            pid = await connection.fetchval(f"{_COPYING} LIMIT 1")
            if pid is None:
                continue
            # It stands still while one makes sure that it is killed in the COPY, not after it.
            os.kill(pid, signal.SIGSTOP)
            if await connection.fetchval(f"{_COPYING} AND pid = $1", pid):
                os.kill(pid, signal.SIGKILL)
                return
            os.kill(pid, signal.SIGCONT)
    finally:
        connection.terminate()


async def _processes(mesh: Mesh, service: str) -> list[psutil.Process]:
    """Wait until something of a service runs, and return its processes."""
    while True:
        parts = await asyncio.to_thread(mesh.parts, service)
        with suppress(psutil.NoSuchProcess):
            if found := [psutil.Process(part["pid"]) for part in parts if part["pid"] is not None]:
                return found


@contextmanager
def standing_still(mesh: Mesh) -> Iterator[None]:
    """Stop all processes of PostgreSQL until the block ends."""
    postmaster = psutil.Process(mesh.part("postgres")["pid"])
    # The postmaster first: it starts no more then.
    postmaster.suspend()
    processes = [postmaster, *postmaster.children(recursive=True)]
    try:
        for process in processes[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def stand_still(longest_s: float) -> Fault:
    """Stop all processes of PostgreSQL for a while."""

    async def stood_still(mesh: Mesh, chance: random.Random) -> None:
        with standing_still(mesh):
            # How long it takes is the fault itself; nothing is waited for.
            await asyncio.sleep(chance.uniform(0.5, longest_s))

    return stood_still
