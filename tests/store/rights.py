"""Which rights in a schema the catalog tells of."""

import asyncpg


async def rights_on_tables(connection: asyncpg.Connection, schema: str) -> dict[str, dict[str, set[str]]]:
    """Return what others than owners may do to whole tables, views and sequences, by role and name.

    No partition has rights of its own: those of its table would not hold for it.
    """
    rows = await connection.fetch(
        """
        SELECT coalesce(role.rolname, 'PUBLIC') AS grantee, object.relname, object.relispartition,
               acl.privilege_type
        FROM pg_class AS object
        CROSS JOIN LATERAL aclexplode(object.relacl) AS acl
        LEFT JOIN pg_roles AS role ON role.oid = acl.grantee
        WHERE object.relnamespace = $1::text::regnamespace AND acl.grantee <> object.relowner
        """,
        schema,
    )
    rights: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        assert not row["relispartition"], f"rights on partition {row['relname']}"
        rights.setdefault(row["grantee"], {}).setdefault(row["relname"], set()).add(row["privilege_type"])
    return rights


async def rights_on_columns(connection: asyncpg.Connection, schema: str) -> set[tuple[str, str, str, str]]:
    """Return role, table, column and right."""
    rows = await connection.fetch(
        """
        SELECT coalesce(role.rolname, 'PUBLIC'), object.relname, attribute.attname, acl.privilege_type
        FROM pg_attribute AS attribute
        JOIN pg_class AS object ON object.oid = attribute.attrelid
        CROSS JOIN LATERAL aclexplode(attribute.attacl) AS acl
        LEFT JOIN pg_roles AS role ON role.oid = acl.grantee
        WHERE object.relnamespace = $1::text::regnamespace
        """,
        schema,
    )
    return {(row[0], row[1], row[2], row[3]) for row in rows}


async def functions(connection: asyncpg.Connection, schema: str) -> list[asyncpg.Record]:
    """Return each function's proname, prosecdef, proconfig, for_all (who may call it) and grantees."""
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT function.proname, function.prosecdef, function.proconfig, function.proacl IS NULL AS for_all,
               ARRAY (
                   SELECT coalesce(role.rolname, 'PUBLIC')
                   FROM aclexplode(function.proacl) AS acl
                   LEFT JOIN pg_roles AS role ON role.oid = acl.grantee
                   WHERE acl.grantee <> function.proowner
               ) AS grantees
        FROM pg_proc AS function
        WHERE function.pronamespace = $1::text::regnamespace
        """,
        schema,
    )
    return rows
