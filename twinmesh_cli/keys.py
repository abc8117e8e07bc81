"""`twinmesh keys`: the keys that sign access tokens."""

import asyncio

import typer

from meshkit.embedded import PartFailedError
from twinmesh_cli.database import DatabaseAwayError, reachable_database
from twinmesh_cli.home import Home, mesh_secret
from twinmesh_cli.seeding import rotate_signing_keys
from twinmesh_cli.session import fail
from twinmesh_cli.settings import load_settings

keys_app = typer.Typer(help="The keys that sign access tokens.", no_args_is_help=True)


@keys_app.callback()
def keys() -> None:
    """Keep `rotate` a word of the command: typer drops the name of an only one."""


@keys_app.command()
def rotate() -> None:
    """Have another key sign, without a request that fails; when one is on its way already, tell of that."""
    settings = load_settings()
    home = Home(settings.home)
    try:
        with reachable_database(settings, home) as url:
            key = asyncio.run(
                rotate_signing_keys(settings, admin_url=url, mesh_secret=mesh_secret(settings, home))
            )
    except (DatabaseAwayError, PartFailedError) as error:
        fail(str(error))
    print(f"key {key['kid']} signs from {key['activate_time']} on")
    print(
        "until then it is published, so that everybody knows it; the one before it stays until its tokens end"
    )
