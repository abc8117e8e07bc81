"""What holds for every schema, table, view, function and role that is or will ever be in the database.

A walk over PostgreSQL's catalogs, which starts from everything that is not PostgreSQL's own: what somebody
adds and forgets to protect is found without being listed here. What is an exception is. Which service has
which rights in its own schema is told exactly by the tests of that schema.
"""

import asyncpg
import pytest

from twinmesh_cli.owners import OWNERS

# The installation's, not a tenant's: no row is anybody's.
_WITHOUT_TENANTS = {
    "mesh.migration",
    "auth.signing_key",
    "auth.deleted_devices_read",
    # Who may come in is not known yet, and an address is no tenant's.
    "auth.address_failures",
    "telemetry.archive",
    "telemetry.feed_consumer",
    "telemetry.ingest_commit",
    "telemetry.ingest_instance",
    "telemetry.storage_room",
    "telemetry.storage_source",
}
# ADR 2: COPY is refused where policies hold; and who works for all tenants at once.
_BYPASSES = {"twinmesh_ingest"}
_SEES_ALL_TENANTS = {"twinmesh_twin_feed", "twinmesh_maintenance"}
# Who asks in another schema than its own service's.
_ABROAD = {("twinmesh_sql", "twinmesh")}
# Called by whom rows of many tenants concern; what comes out is in the comment of each.
_SEES_PAST_POLICIES = {
    "asset.device_tenants",
    "asset.deleted_devices_after",
    "auth.closed_tenants_after",
    "auth.device_certificates_on_crl",
    "auth.revocations_after",
    "auth.tenants_after",
    "auth.tenants_with_ended_secrets",
    # They make and drop days of all tenants' events, none of the last 30 days, and answer how many days.
    "auth.ensure_audit_days",
    "auth.drop_audit_days",
    # It deletes what a tenant has, but only one that is marked as deleted, and answers how many rows.
    "auth.delete_tenant_rows",
    # They delete what is old of all tenants, and answer nothing.
    "auth.forget_account_failures",
    "auth.forget_signed_requests",
}
_OF_TENANT = "NULLIF(current_setting('twinmesh.tenant'::text, true), ''::text)"
_OWN_ROWS = {
    f"(tenant_id = {_OF_TENANT})",
    f'(tenant_id = ( SELECT {_OF_TENANT} AS "nullif"))',
    # A person's role is of one tenant, and reads only which.
    "(tenant_id = ( SELECT u.tenant_id\n   FROM telemetry.sql_user u\n  WHERE (u.role_name = CURRENT_USER)))",
    "((role_name = CURRENT_USER) AND (NOT is_closed))",
}
# Rows of no tenant are all tenants'.
_OWN_ROWS_OR_ALL = f"((tenant_id = ''::text) OR (tenant_id = ( SELECT {_OF_TENANT} AS \"nullif\")))"
_FOREIGN = "nspname !~ '^pg_' AND nspname <> 'information_schema'"

_RELATIONS = f"""
SELECT nspname || '.' || relname AS name, nspname AS schema, relkind::text AS kind, relispartition,
       relrowsecurity AND relforcerowsecurity AS forced,
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = object.oid AND attname = 'tenant_id') AS of_tenant,
       EXISTS (SELECT FROM pg_policy WHERE polrelid = object.oid) AS has_policy,
       'security_invoker=true' = ANY (coalesce(reloptions, '{{}}')) AS by_invoker
FROM pg_class AS object
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND {_FOREIGN}
"""

_POLICIES = """
SELECT polrelid::regclass::text AS name, polpermissive, pg_get_expr(polqual, polrelid) AS seen,
       pg_get_expr(polwithcheck, polrelid) AS written,
       ARRAY (SELECT CASE one WHEN 0 THEN 'PUBLIC' ELSE one::regrole::text END FROM unnest(polroles) AS one)
           AS roles
FROM pg_policy
"""

_RIGHTS = f"""
WITH right_on AS (
    SELECT nspname AS schema, nspname AS name, false AS is_partition, acl.*
    FROM pg_namespace CROSS JOIN LATERAL aclexplode(nspacl) AS acl
    WHERE acl.grantee <> nspowner AND {_FOREIGN}
    UNION ALL
    SELECT nspname, nspname || '.' || relname, relispartition, acl.*
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace CROSS JOIN LATERAL (
        SELECT * FROM aclexplode(relacl)
        UNION ALL
        SELECT (aclexplode(attacl)).* FROM pg_attribute WHERE attrelid = pg_class.oid
    ) AS acl
    WHERE acl.grantee <> relowner AND {_FOREIGN}
    UNION ALL
    SELECT nspname, nspname || '.' || proname, false, acl.*
    FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    CROSS JOIN LATERAL aclexplode(coalesce(proacl, acldefault('f', proowner))) AS acl
    WHERE acl.grantee <> proowner AND nspname <> 'public' AND {_FOREIGN}
)
SELECT DISTINCT schema, name, is_partition, is_grantable,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
FROM right_on
-- PostgreSQL makes this schema so.
WHERE NOT (name = 'public' AND grantee = 0 AND privilege_type = 'USAGE')
"""

_DEFINERS = f"""
SELECT nspname || '.' || proname AS name, nspname AS schema,
       coalesce(proconfig, '{{}}') @> ARRAY['search_path=pg_catalog'] AS is_bound
FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
WHERE prosecdef AND {_FOREIGN}
"""

_ROLES = """
SELECT rolname, rolbypassrls,
       rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication AS is_powerful,
       EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid) AS is_member,
       EXISTS (
           SELECT FROM pg_shdepend
           WHERE refclassid = 'pg_authid'::regclass AND refobjid = pg_roles.oid AND deptype = 'o'
       ) AS owns
FROM pg_roles WHERE rolname = ANY ($1)
"""


async def _relations(connection: asyncpg.Connection) -> set[str]:
    found = set()
    for row in await connection.fetch(_RELATIONS):
        name = row["name"]
        if row["kind"] in ("m", "f"):
            found.add(f"{name} cannot have policies: a materialized view or foreign table")
        elif row["kind"] == "v":
            if not row["by_invoker"]:
                found.add(f"view {name} shows what its owner sees (security_invoker)")
        elif row["relispartition"]:
            pass  # Protected by having no rights on it.
        elif name in _WITHOUT_TENANTS:
            if row["of_tenant"]:
                found.add(f"{name} is a tenant's after all")
        elif not row["of_tenant"]:
            found.add(f"{name} has no tenant_id")
        elif not row["forced"]:
            found.add(f"{name} does not force row-level security")
    return found


async def _policies(connection: asyncpg.Connection) -> set[str]:
    found = set()
    for row in await connection.fetch(_POLICIES):
        allowed = {*_OWN_ROWS, None}
        if row["name"] == "telemetry.rollup_horizon":
            allowed.add(_OWN_ROWS_OR_ALL)
        if set(row["roles"]) <= _SEES_ALL_TENANTS:
            allowed.add("true")
        if not (row["polpermissive"] and {row["seen"], row["written"]} <= allowed):
            found.add(f"a policy of {row['name']} lets {', '.join(row['roles'])} past the tenant")
    return found


async def _rights(connection: asyncpg.Connection) -> set[str]:
    own = {(role.name, owner.name) for owner in OWNERS for role in owner.roles} | _ABROAD
    found = set()
    for row in await connection.fetch(_RIGHTS):
        who, name = row["grantee"], row["name"]
        if row["is_partition"]:
            found.add(f"{who} has rights on partition {name}, which no policy protects")
        elif row["is_grantable"]:
            found.add(f"{who} may pass on rights on {name}")
        elif (who, row["schema"]) not in own:
            found.add(f"{who} has rights on {name}, outside of its own schema")
    return found


async def _definers(connection: asyncpg.Connection) -> set[str]:
    found = set()
    for row in await connection.fetch(_DEFINERS):
        if not row["is_bound"]:
            found.add(f"{row['name']} runs as its owner on a search_path of its caller's")
        # Those of telemetry are told exactly in test_schema_telemetry.
        if row["schema"] != "telemetry" and row["name"] not in _SEES_PAST_POLICIES:
            found.add(f"{row['name']} sees all tenants and is not listed")
    return found


async def _roles(connection: asyncpg.Connection) -> set[str]:
    names = {role.name for owner in OWNERS for role in owner.roles}
    found = set()
    for row in await connection.fetch(_ROLES, sorted(names)):
        names.remove(row["rolname"])
        if row["rolbypassrls"] != (row["rolname"] in _BYPASSES):
            found.add(f"{row['rolname']} has not the BYPASSRLS that ADR 2 says")
        for what, so in (("is_powerful", "is more than a service"), ("is_member", "is a member of a role")):
            if row[what]:
                found.add(f"{row['rolname']} {so}")
        if row["owns"]:
            found.add(f"{row['rolname']} owns something")
    return found | {f"{name} is missing" for name in names}


async def _violations(connection: asyncpg.Connection) -> set[str]:
    found = set()
    for walk in (_relations, _policies, _rights, _definers, _roles):
        found |= await walk(connection)
    return found


async def test_the_database_keeps_tenants_apart_everywhere(connection: asyncpg.Connection) -> None:
    assert await _violations(connection) == set()


async def test_the_exceptions_are_still_there(connection: asyncpg.Connection) -> None:
    names = {row["name"] for row in await connection.fetch(_RELATIONS)}
    assert names >= _WITHOUT_TENANTS
    assert {row["name"] for row in await connection.fetch(_DEFINERS)} >= _SEES_PAST_POLICIES


_TABLE = "CREATE TABLE auth.extra (tenant_id text PRIMARY KEY);"
_FORCED = f"""
{_TABLE}
ALTER TABLE auth.extra ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.extra FORCE ROW LEVEL SECURITY;
"""
_MISTAKES = {
    "new schema": ("CREATE SCHEMA extra; CREATE TABLE extra.t (n int)", "extra.t has no tenant_id"),
    "new table": (_TABLE, "auth.extra does not force row-level security"),
    "public table": ("CREATE TABLE public.extra (tenant_id text)", "public.extra does not force"),
    "not forced": ("ALTER TABLE asset.device NO FORCE ROW LEVEL SECURITY", "asset.device does not force"),
    "disabled": (
        "ALTER TABLE telemetry.segment DISABLE ROW LEVEL SECURITY",
        "telemetry.segment does not force",
    ),
    "view": ("CREATE VIEW asset.extra AS SELECT * FROM asset.device", "view asset.extra shows"),
    "materialized": (
        "CREATE MATERIALIZED VIEW asset.extra AS SELECT * FROM asset.device",
        "asset.extra cannot have policies",
    ),
    "wide policy": (f"{_FORCED} CREATE POLICY p ON auth.extra USING (true)", "a policy of auth.extra lets"),
    "wide writes": (
        f"{_FORCED} CREATE POLICY p ON auth.extra FOR INSERT WITH CHECK (true)",
        "a policy of auth.extra lets",
    ),
    "public right": ("GRANT SELECT ON asset.device TO PUBLIC", "PUBLIC has rights on asset.device"),
    "column right": (
        "GRANT SELECT (id) ON asset.device TO twinmesh_auth",
        "twinmesh_auth has rights on asset.device",
    ),
    "other schema": ("GRANT USAGE ON SCHEMA asset TO twinmesh_ingest", "twinmesh_ingest has rights on asset"),
    "passed on": (
        "GRANT SELECT ON auth.api_key TO twinmesh_auth WITH GRANT OPTION",
        "twinmesh_auth may pass on rights on auth.api_key",
    ),
    "function for all": (
        "CREATE FUNCTION auth.extra() RETURNS int LANGUAGE sql RETURN 1",
        "PUBLIC has rights on auth.extra",
    ),
    "definer": (
        "CREATE FUNCTION auth.extra() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "auth.extra sees all tenants and is not listed",
    ),
    "unbound definer": (
        "ALTER FUNCTION auth.revocations_after RESET search_path",
        "auth.revocations_after runs as its owner",
    ),
    "owner": (
        """
        GRANT twinmesh_auth TO CURRENT_USER WITH SET TRUE;
        GRANT CREATE ON SCHEMA auth TO twinmesh_auth;
        ALTER TABLE auth.api_key OWNER TO twinmesh_auth
        """,
        "twinmesh_auth owns something",
    ),
    "public schema": ("GRANT CREATE ON SCHEMA public TO twinmesh_auth", "twinmesh_auth has rights on public"),
    "bypass": ("ALTER ROLE twinmesh_auth BYPASSRLS", "twinmesh_auth has not the BYPASSRLS"),
    "creates roles": ("ALTER ROLE twinmesh_asset CREATEROLE", "twinmesh_asset is more than a service"),
    "member": ("GRANT twinmesh_ingest TO twinmesh_auth", "twinmesh_auth is a member of a role"),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
async def test_a_mistake_is_found(connection: asyncpg.Connection, mistake: str) -> None:
    statement, expected = _MISTAKES[mistake]
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
        assert any(found.startswith(expected) for found in await _violations(connection))
    finally:
        # Roles are the whole cluster's.
        await transaction.rollback()


async def test_no_right_on_a_partition(connection: asyncpg.Connection) -> None:
    partitions = {row["name"] for row in await connection.fetch(_RELATIONS) if row["relispartition"]}
    assert partitions
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"GRANT SELECT ON {min(partitions)} TO twinmesh_twin_query")
        assert await _violations(connection) == {
            f"twinmesh_twin_query has rights on partition {min(partitions)}, which no policy protects"
        }
    finally:
        await transaction.rollback()
