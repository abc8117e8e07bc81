"""Becomes one service in a container, told the URLs of its database roles.

    python run_service.py MODULE VARIABLE=ROLE …

Each VARIABLE is set to the URL by which ROLE reaches TWINMESH_DATABASE; the roles'
passwords derive from TWINMESH_MESH_SECRET, as `twinmesh migrate` has set them.
"""

import os
import sys

from meshkit import secrets
from twinmesh_cli.database import role_url


def main() -> None:
    """Set the variables and run the module in this process's place."""
    module, *assignments = sys.argv[1:]
    root = secrets.decode_root(os.environ["TWINMESH_MESH_SECRET"])
    for assignment in assignments:
        variable, _, role = assignment.partition("=")
        os.environ[variable] = role_url(os.environ["TWINMESH_DATABASE"], root=root, role=role)
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - a shell would only stand in the way


if __name__ == "__main__":
    main()
