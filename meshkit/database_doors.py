"""What PostgreSQL lets everybody do in a database, and people who ask in SQL shall not (docs/sql.md).

Making a large object is writing, and so is a message in the write-ahead log. Who takes an advisory lock that
services take keeps them from their work: the numbers are no secret, and there is no right to a single lock,
only to the functions that take any. So everybody loses them, and services get them. Only a superuser can do
that: the launcher is one at its own PostgreSQL, a migrator may be one elsewhere, and for others
`twinmesh sql-user create` prints what to run.
"""

from collections.abc import Sequence

import asyncpg

_WRITING = [
    f"pg_catalog.{function}"
    for function in (
        "lo_creat(integer)",
        "lo_create(oid)",
        "lo_from_bytea(oid, bytea)",
        "pg_logical_emit_message(boolean, text, text, boolean)",
        "pg_logical_emit_message(boolean, text, bytea, boolean)",
    )
]
_ADVISORY_LOCKS = [
    f"pg_catalog.pg_{attempt}advisory_{span}lock{mode}({key})"
    for attempt in ("", "try_")
    for span in ("", "xact_")
    for mode in ("", "_shared")
    for key in ("bigint", "integer, integer")
]
_LOCKS = ", ".join(_ADVISORY_LOCKS)


def closing_statements(*, migrator: str, services: Sequence[str] = ()) -> list[str]:
    """Return what a superuser runs in a database, in this order; running it again changes nothing.

    Args:
        migrator: a role's name, quoted where it needs to be; it may let further roles take locks.
        services: those that do already.
    """
    return [
        f"GRANT EXECUTE ON FUNCTION {_LOCKS} TO {migrator} WITH GRANT OPTION;",
        *_letting(services),
        f"REVOKE EXECUTE ON FUNCTION {_LOCKS}, {', '.join(_WRITING)} FROM PUBLIC;",
    ]


async def close_doors(connection: asyncpg.Connection, services: Sequence[str]) -> None:
    """Close them if this connection's role can, and let services take locks if it may.

    Args:
        connection: as the migrator.
        services: names of the roles that services log in with.
    """
    row = await connection.fetchrow(
        """
        SELECT quote_ident(current_user) AS migrator,
            (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
            (SELECT bool_and(has_function_privilege(function, 'EXECUTE WITH GRANT OPTION'))
                FROM unnest($1::text[]) AS function) AS may_grant
        """,
        _ADVISORY_LOCKS,
    )
    assert row is not None  # noqa: S101 - a row of values
    statements = []
    if row["is_superuser"]:
        statements = closing_statements(migrator=row["migrator"], services=services)
    elif row["may_grant"]:
        statements = _letting(services)
    for statement in statements:
        await connection.execute(statement)


async def are_doors_open(connection: asyncpg.Connection, role: str) -> bool:
    """Tell whether a role may do any of this."""
    return bool(
        await connection.fetchval(
            """
            SELECT bool_or(has_function_privilege($1, function, 'EXECUTE'))
            FROM unnest($2::text[]) AS function
            """,
            role,
            [*_WRITING, *_ADVISORY_LOCKS],
        )
    )


def _letting(services: Sequence[str]) -> list[str]:
    return [f"GRANT EXECUTE ON FUNCTION {_LOCKS} TO {', '.join(services)};"] if services else []
