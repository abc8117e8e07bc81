"""Becomes one service in a container, told the URLs of its database roles and users of NATS.

    python run_service.py MODULE VARIABLE=NAME …

A VARIABLE that ends with _DATABASE_URL is set to the URL by which the role NAME reaches
TWINMESH_DATABASE, one that ends with _NATS_URL to that of the user NAME at TWINMESH_NATS.
Their passwords derive from TWINMESH_MESH_SECRET, as `twinmesh migrate` and
`meshkit.nats_server` have set them.
"""

import os
import sys

from meshkit import secrets
from meshkit.nats_server import NatsUser, user_url
from twinmesh_cli.database import role_url


def main() -> None:
    """Set the variables and run the module in this process's place."""
    module, *assignments = sys.argv[1:]
    root = secrets.decode_root(os.environ["TWINMESH_MESH_SECRET"])
    for assignment in assignments:
        variable, _, name = assignment.partition("=")
        if variable.endswith("_NATS_URL"):
            url = user_url(root, NatsUser(name), address=os.environ["TWINMESH_NATS"])
        else:
            url = role_url(os.environ["TWINMESH_DATABASE"], root=root, role=name)
        os.environ[variable] = url
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - a shell would only stand in the way


if __name__ == "__main__":
    main()
