"""A mesh of the bench's own, thrown away afterwards."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshkit.testing.mesh import Mesh, start_mesh


@contextmanager
def own_mesh(**settings: str) -> Iterator[Mesh]:
    """Start a mesh with the sample data and end it with the context."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-bench-"))
    home.chmod(0o755)
    mesh = start_mesh(home, **settings)
    try:
        yield mesh
    finally:
        mesh.twinmesh("down")
        shutil.rmtree(home, ignore_errors=True)
