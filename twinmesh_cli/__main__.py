"""`python -m twinmesh_cli` is `twinmesh`."""

from twinmesh_cli.main import app

app(prog_name="twinmesh")
