"""`twinmesh sql-user`: who may ask the database in SQL, and whose telemetry they see."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import asyncpg
import typer
from rich.table import Table

from meshkit.embedded import PartFailedError
from twinmesh_cli import sql_roles
from twinmesh_cli.database import DatabaseAwayError, connected, reachable_database
from twinmesh_cli.home import Home
from twinmesh_cli.session import fail
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console
from twinmesh_cli.sql_roles import SqlUserError, role_name

_R = TypeVar("_R")
_FAILURES = (DatabaseAwayError, SqlUserError, PartFailedError, asyncpg.PostgresError)

sql_user_app = typer.Typer(
    help="Roles of the database that read one tenant's telemetry in SQL (docs/sql.md).", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Name of the user; its role is sql_NAME.")]


@sql_user_app.command()
def create(
    name: Name,
    tenant: Annotated[str, typer.Option(help="Whose telemetry it sees.")] = "demo",
    connections: Annotated[int, typer.Option(min=1, max=50, help="At most so many at a time.")] = 5,
) -> None:
    """Make a user and print how to connect; the password is told this once."""

    async def make(connection: asyncpg.Connection) -> tuple[str, list[str]]:
        password = await sql_roles.create_user(connection, name, tenant=tenant, most_connections=connections)
        return password, await sql_roles.statements_for_superuser(connection)

    url, (password, statements) = _run(make)
    _tell(url, role_name(name), password)
    if statements:
        print("This server lets everybody write large objects and into its log, and take locks of services.")
        print("As its superuser, in this database, run:")
        for statement in statements:
            print(f"  {statement}")


@sql_user_app.command()
def rotate(name: Name) -> None:
    """Give a user another password, which is told this once; open connections stay."""
    url, password = _run(lambda connection: sql_roles.rotate_password(connection, name))
    _tell(url, role_name(name), password)


@sql_user_app.command()
def drop(name: Name) -> None:
    """Take a user's access away: its connections end, and its role is removed."""
    _run(lambda connection: sql_roles.drop_user(connection, name))
    print(f"dropped {role_name(name)}")


@sql_user_app.command(name="list")
def list_users() -> None:
    """Show all users."""
    _, users = _run(sql_roles.list_users)
    table = Table("user", "tenant", "created", "connections")
    for user in users:
        table.add_row(user.role, user.tenant, f"{user.created_at:%Y-%m-%d %H:%M}Z", str(user.connections))
    table_console().print(table)


def _run(work: Callable[[asyncpg.Connection], Awaitable[_R]]) -> tuple[str, _R]:
    """Do something as the migrator; returns the URL of the database as well."""
    settings = load_settings()

    async def connected_work(url: str) -> _R:
        async with connected(url) as connection:
            return await work(connection)

    try:
        with reachable_database(settings, Home(settings.home)) as url:
            return url, asyncio.run(connected_work(url))
    except _FAILURES as error:
        fail(str(error))


def _tell(url: str, role: str, password: str) -> None:
    parts = urlsplit(url)
    host, port, database = parts.hostname, parts.port or 5432, parts.path.lstrip("/")
    print(f"host      {host}")
    print(f"port      {port}")
    print(f"database  {database}")
    print(f"user      {role}")
    print(f"password  {password}")
    print("It is not shown again. Keep it where programs read it, such as ~/.pgpass or PGPASSWORD:")
    print(f"  psql 'host={host} port={port} dbname={database} user={role}'")
