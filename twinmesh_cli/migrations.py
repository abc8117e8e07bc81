"""`twinmesh migrate` and `twinmesh seed`."""

import asyncio
import sys
from typing import Annotated, NoReturn

import asyncpg
import typer

from meshkit import secrets
from meshkit.embedded import PartFailedError
from meshkit.migrate import MigrationError, migrate_down, steps
from twinmesh_cli.database import DatabaseAwayError, connected, migrate, reachable_database
from twinmesh_cli.home import Home, mesh_secret
from twinmesh_cli.owners import OWNERS
from twinmesh_cli.seeding import seed as run_seed
from twinmesh_cli.settings import load_settings

_FAILURES = (DatabaseAwayError, MigrationError, PartFailedError, asyncpg.PostgresError)

migrate_app = typer.Typer(
    help="Take the database forward or back, or show where it is.", no_args_is_help=True
)


@migrate_app.command()
def up() -> None:
    """Make the roles and apply every migration that is missing."""
    settings = load_settings()
    home = Home(settings.home)
    try:
        with reachable_database(settings, home) as url:
            root = secrets.decode_root(mesh_secret(settings, home))
            applied = asyncio.run(migrate(url, root=root)).applied
    except _FAILURES as error:
        _fail(str(error))
    for each in applied:
        print(f"applied {each.owner} {each.version:04} {each.name}")
    if not applied:
        print("nothing to do")


@migrate_app.command()
def down(
    owner: Annotated[str, typer.Argument(help="Whose migrations: see `status`.")],
    to: Annotated[int, typer.Option(help="The version to go back to; 0 removes everything.", min=0)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take one owner back to a version. Data in what is removed is lost."""
    chosen = next((each for each in OWNERS if each.name == owner), None)
    if chosen is None:
        _fail(f"no owner {owner}; there are {', '.join(each.name for each in OWNERS)}")
    if not yes:
        typer.confirm(f"Take {owner} back to {to:04}, losing the data of what is removed?", abort=True)
    settings = load_settings()

    async def back(url: str) -> list[str]:
        async with connected(url) as connection:
            undone = await migrate_down(connection, chosen, to_version=to)
            return [f"undid {each.owner} {each.version:04} {each.name}" for each in undone]

    try:
        with reachable_database(settings, Home(settings.home)) as url:
            lines = asyncio.run(back(url))
    except _FAILURES as error:
        _fail(str(error))
    print("\n".join(lines) or "nothing to do")


@migrate_app.command()
def status() -> None:
    """List all migrations; exit code 0 only if all are applied."""
    settings = load_settings()

    async def listed(url: str) -> list[tuple[str, bool]]:
        async with connected(url) as connection:
            return [
                (f"{step.migration.owner} {step.migration.version:04} {step.migration.name}", step.applied)
                for step in await steps(connection, OWNERS)
            ]

    try:
        with reachable_database(settings, Home(settings.home)) as url:
            rows = asyncio.run(listed(url))
    except _FAILURES as error:
        _fail(str(error))
    for name, applied in rows:
        print(f"{'applied' if applied else 'missing':<8} {name}")
    raise typer.Exit(0 if all(applied for _, applied in rows) else 1)


def seed() -> None:
    """Load the sample data of tenant demo; what is there already stays as it is."""
    settings = load_settings()
    home = Home(settings.home)
    try:
        with reachable_database(settings, home) as url:
            done = asyncio.run(run_seed(settings, admin_url=url, mesh_secret=mesh_secret(settings, home)))
    except _FAILURES as error:
        _fail(str(error))
    if done.tenant_deleted:
        print("tenant demo is deleted; nothing is added")
        return
    if done.password is not None:
        print(f"user admin of tenant demo has the password {done.password} (shown only this once)")
    print(
        "sample data is loaded"
        if done.user_created
        else "tenant demo was there already; what was missing is added"
    )


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
