"""Becomes one service in a container, told the URLs of its database roles and users of NATS.

    python run_service.py MODULE VARIABLE=NAME …

A VARIABLE that ends with _DATABASE_URL is set to the URL by which the role NAME reaches
TWINMESH_DATABASE, one that ends with _NATS_URL to that of the user NAME at TWINMESH_NATS.
Their passwords derive from TWINMESH_MESH_SECRET, as `twinmesh migrate` and
`meshkit.nats_server` have set them; only auth_svc is handed it on.
"""

import os
import sys

from pydantic import Field

from meshkit.config import RootSettings
from meshkit.nats_server import NatsUser, user_url
from meshkit.runtime import read_settings
from twinmesh_cli.database import role_url

_KEEPS_THE_ROOT = "auth_svc"


class ContainerSettings(RootSettings):
    """What passwords derive from, and where the servers are."""

    database: str = Field("", description="PostgreSQL URL without a login.")
    nats: str = Field("", description="NATS, host:port.")


def main() -> None:
    """Set the variables and run the module in this process's place."""
    module, *assignments = sys.argv[1:]
    settings = read_settings("run_service", ContainerSettings)
    root = settings.root_secret
    for assignment in assignments:
        variable, _, name = assignment.partition("=")
        if variable.endswith("_NATS_URL"):
            url = user_url(root, NatsUser(name), address=settings.nats)
        else:
            url = role_url(settings.database, root=root, role=name)
        os.environ[variable] = url
    if module != _KEEPS_THE_ROOT:
        # Who has it can have every password and sign as everybody.
        for variable in ("TWINMESH_MESH_SECRET", "TWINMESH_MESH_SECRET_FILE"):
            os.environ.pop(variable, None)
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - a shell would only stand in the way


if __name__ == "__main__":
    main()
