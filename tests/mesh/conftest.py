import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from meshkit.testing.mesh import Mesh, start_mesh


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """One mesh for all tests of this worker that leave it as it was."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-mesh-"))
    home.chmod(0o755)
    started = start_mesh(home)
    yield started
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def admin_token(mesh: Mesh) -> str:
    """Access token of the demo tenant's administrator."""
    return mesh.log_in()


@pytest.fixture
async def admin(mesh: Mesh, admin_token: str) -> AsyncIterator[httpx.AsyncClient]:
    """JSON client of the demo tenant's administrator."""
    async with mesh.client(admin_token) as client:
        yield client
