"""People who ask in SQL see their tenant's telemetry, whatever they SET, and change nothing."""

import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import yaml

from meshkit import db
from meshkit.migrate import Owner, Role, ensure_roles, migrate_down, migrate_up, migrations_of
from meshkit.tenant_deletion import ClosedTenant
from meshkit.testing.database import TestDatabase
from telemetry_store.maintenance.closed_tenants import SqlUserDoor, delete_tenant
from telemetry_store.migrations import OWNER
from telemetry_store.series import Point
from tests.store.telemetry import Sent, recorder
from tests.store.writing import T0, admin
from twinmesh_cli import sql_roles
from twinmesh_cli.sql_roles import SqlUserError

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/observability/grafana"
VIEWS = ("series", "telemetry", "latest", "events", "rollup_minute", "rollup_hour", "rollup_day")
# A service that comes with a later version.
LATER = Owner("later", "later", (Role("twinmesh_later"),))
LET_EVERYBODY = """
    DO $$
    DECLARE
        function regprocedure;
    BEGIN
        FOR function IN SELECT oid FROM pg_proc WHERE proname ~ 'advisory|^lo_(cr|from)|^pg_logical_emit' LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', function);
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM twinmesh_migrator CASCADE', function);
        END LOOP;
    END
    $$
"""
DEMO_ONLY = dict.fromkeys(VIEWS, frozenset(["demo"]))


# Views of joins are not written to, whoever asks; what is not installed is not there.
_NOT_THERE = (
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.UndefinedFileError,
    asyncpg.UndefinedObjectError,
    asyncpg.FeatureNotSupportedError,
)


@dataclass(frozen=True, slots=True)
class People:
    """Ada of tenant demo and Bob of tenant acme. Roles belong to the cluster: names differ by test."""

    database: TestDatabase
    ada: str
    bob: str
    passwords: dict[str, str]

    def url(self, name: str) -> str:
        parts = urlsplit(self.database.admin_url)
        return urlunsplit(
            parts._replace(
                netloc=f"{sql_roles.role_name(name)}:{self.passwords[name]}@{parts.hostname}:{parts.port}"
            )
        )

    @asynccontextmanager
    async def connected(self, name: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url(name))
        try:
            yield connection
        finally:
            await connection.close()


async def write_telemetry(database: TestDatabase) -> None:
    """Store samples, a checkpoint, events and rollups of two tenants; values tell whose."""
    async with recorder(database) as writer:
        for tenant, value in (("demo", 1.0), ("acme", 2.0)):
            await writer.commit(tenant, [Sent(f"{tenant}-pump", "flow", T0 + 1_000_000, value)])
    async with admin(database) as connection:
        await connection.execute(
            """
            INSERT INTO telemetry.series_latest (tenant_id, series_id, time, order_no, double_value)
            SELECT tenant_id, series_id, $1, 1, CASE tenant_id WHEN 'demo' THEN 1 ELSE 2 END
            FROM telemetry.series
            """,
            T0,
        )
        await connection.execute(
            """
            INSERT INTO telemetry.event
                (tenant_id, device_id, type, severity, time, received_at, message, attributes, instance,
                 commit_no, order_no)
            SELECT tenant_id, device_id, 'started', 200, $1, now(), device_id, '{"rpm": 3}', 1, 1, 1
            FROM telemetry.series
            """,
            T0,
        )
        await connection.execute(
            "SELECT telemetry.ensure_rollup_days(ARRAY [to_timestamp($1)::date])",
            T0 // 1e6,
        )
        for table in ("rollup_minute", "rollup_hour", "rollup_day"):
            await connection.execute(
                f"""
                INSERT INTO telemetry.{table}
                    (tenant_id, series_id, start_time, count, min, max, sum, mean, m2, first, last,
                     first_time, last_time, anomalies, quality_sum, quality_count)
                SELECT tenant_id, series_id, date_trunc('hour', to_timestamp($1)), 2, 1, 3, 4, 2, 2, 1, 3,
                    to_timestamp($1), to_timestamp($1), 0, 150, 2
                FROM telemetry.series
                """,
                T0 // 1e6,
            )


@pytest.fixture
async def people(database: TestDatabase) -> AsyncIterator[People]:
    await write_telemetry(database)
    suffix = secrets.token_hex(6)
    found = People(database, f"ada_{suffix}", f"bob_{suffix}", {})
    async with admin(database) as connection:
        await connection.execute("INSERT INTO auth.tenant VALUES ('demo', now()), ('acme', now())")
        for name, tenant in ((found.ada, "demo"), (found.bob, "acme")):
            found.passwords[name] = await sql_roles.create_user(
                connection, name, tenant=tenant, most_connections=2
            )
        yield found
        for user in await sql_roles.list_users(connection):
            await sql_roles.drop_user(connection, user.role)


async def seen(connection: asyncpg.Connection) -> dict[str, set[Any]]:
    """Return the tenants whose rows each view shows, by the devices' names."""
    return {
        view: {
            row["device_id"].removesuffix("-pump")
            for row in await connection.fetch(f"SELECT device_id FROM twinmesh.{view}")
        }
        for view in VIEWS
    }


async def test_each_sees_its_tenant_in_every_view(people: People) -> None:
    for name, tenant in ((people.ada, "demo"), (people.bob, "acme")):
        async with people.connected(name) as connection:
            assert await seen(connection) == dict.fromkeys(VIEWS, frozenset([tenant]))
            rows = await connection.fetch("SELECT * FROM telemetry")
            assert [(row["metric"], row["value"], row["unit"]) for row in rows] == [
                ("flow", 1.0 if tenant == "demo" else 2.0, "unit")
            ]
            assert rows[0]["time"].timestamp() * 1e6 == T0 + 1_000_000
            [hour] = await connection.fetch("SELECT * FROM rollup_hour")
            assert (hour["mean"], hour["stddev"], hour["quality"]) == (2.0, 1.0, 75.0)


async def test_the_view_shows_samples_of_every_kind_once(people: People) -> None:
    sent = [
        Sent("demo-fan", "level", T0, 1.5),
        Sent("demo-fan", "count", T0, 2**60 + 1),
        Sent("demo-fan", "on", T0, True),
        Sent("demo-fan", "place", T0, Point(48.0, 16.0, None)),
        Sent("demo-fan", "place", T0 + 1, Point(47.0, 15.0, 170.0)),
        *(
            Sent("demo-fan", "state", T0 + place, text)
            for place, text in enumerate(["a", "b", "a", "c", "a", "b"])
        ),
        *(Sent("demo-fan", "same", T0 + place, "open") for place in range(2)),
        *(Sent("demo-fan", "each", T0 + place, f"text {place}") for place in range(3)),
    ]
    async with recorder(people.database) as writer:
        await writer.commit("demo", sent)
        await writer.commit("demo", [Sent("demo-fan", "level", T0, 2.5)])
    async with people.connected(people.ada) as connection:
        rows = await connection.fetch(
            """
            SELECT metric, (extract(epoch FROM time) * 1000000)::bigint - $1 AS offset, value, int_value,
                bool_value, text_value, latitude, longitude, altitude
            FROM telemetry WHERE device_id = 'demo-fan' ORDER BY metric, time
            """,
            T0,
        )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for metric, *values in rows:
        found.setdefault(metric, []).append(tuple(value for value in values if value is not None))
    assert found == {
        "count": [(0, float(2**60 + 1), 2**60 + 1)],
        "each": [(0, "text 0"), (1, "text 1"), (2, "text 2")],
        "level": [(0, 2.5)],
        "on": [(0, 1.0, True)],
        "place": [(0, 48.0, 16.0), (1, 47.0, 15.0, 170.0)],
        "same": [(0, "open"), (1, "open")],
        "state": [(0, "a"), (1, "b"), (2, "a"), (3, "c"), (4, "a"), (5, "b")],
    }


@pytest.mark.parametrize(
    "statement",
    [
        "SET twinmesh.tenant = 'acme'",
        "SET row_security = off",
        "SET search_path = telemetry, pg_catalog, public",
        "SET default_transaction_read_only = off",
        "SET statement_timeout = 0",
        "SET debug_print_plan = on",
        "SET plan_cache_mode = force_generic_plan",
        "RESET ALL",
        "DISCARD ALL",
    ],
)
async def test_no_setting_shows_another_tenant(people: People, statement: str) -> None:
    async with people.connected(people.ada) as connection:
        await connection.execute(statement)
        try:
            found = await seen(connection)
        except asyncpg.InsufficientPrivilegeError:
            assert "row_security" in statement  # Off means: fail rather than filter.
            await connection.execute("SET row_security = on")
            found = await seen(connection)
        assert found == DEMO_ONLY


TO_BE_SOMEBODY_ELSE = (
    "SET ROLE twinmesh_sql",
    "SET ROLE twinmesh_twin_query",
    "SET ROLE twinmesh_migrator",
    "SET ROLE sql_{bob}",
    "SET SESSION AUTHORIZATION sql_{bob}",
    "SET SESSION AUTHORIZATION twinmesh_sql",
    "GRANT twinmesh_twin_query TO CURRENT_USER",
    "GRANT sql_{bob} TO CURRENT_USER",
    "GRANT twinmesh_sql TO sql_{bob}",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "ALTER ROLE sql_{bob} PASSWORD 'x'",
    "CREATE ROLE mine",
)
TO_READ_MORE = (
    "SELECT * FROM telemetry.segment",
    "SELECT * FROM telemetry.sql_user",
    "SELECT * FROM telemetry.sealed_segment",
    "SELECT * FROM telemetry.writer_cursor",
    "SELECT * FROM telemetry.dead_letter",
    "SELECT * FROM auth.user_account",
    "SELECT * FROM auth.api_key",
    "SELECT * FROM asset.device",
    "SELECT * FROM mesh.migration",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_statistic",
    "SELECT * FROM pg_largeobject",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT pg_ls_dir('.')",
    "COPY telemetry TO '/tmp/copied'",
    "COPY telemetry TO PROGRAM 'cat'",
    "SELECT lo_import('/etc/hostname')",
)
TO_WRITE = (
    "INSERT INTO series VALUES ('a', 'b', 'double', '')",
    "UPDATE latest SET value = 0",
    "DELETE FROM rollup_hour",
    "DELETE FROM series",
    "INSERT INTO telemetry.sql_user VALUES (current_user, 'acme')",
    "TRUNCATE telemetry.segment",
    "CREATE TABLE twinmesh.mine (n int)",
    "CREATE TABLE public.mine (n int)",
    "CREATE TEMPORARY TABLE mine (n int)",
    "CREATE SCHEMA mine",
    "CREATE VIEW twinmesh.mine AS SELECT 1",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE VIEW twinmesh.series AS SELECT 1",
    "CREATE EXTENSION dblink",
    "CREATE SERVER mine FOREIGN DATA WRAPPER postgres_fdw",
    "DROP VIEW twinmesh.series",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT pg_logical_emit_message(false, 'x', 'x')",
    "SELECT pg_logical_emit_message(false, 'x', 'x'::bytea)",
    "SELECT telemetry.ensure_segment_days(1, 1)",
    "SELECT nextval('telemetry.commit_order')",
    "VACUUM FULL telemetry.segment",
    "BEGIN; LOCK TABLE telemetry.segment",
    "ALTER SYSTEM SET fsync = off",
    "CHECKPOINT",
)


async def refuses(connection: asyncpg.Connection, statement: str) -> bool:
    """Tell whether the database refuses a statement for want of a right, or of what it needs."""
    try:
        await connection.execute(statement)
    except (asyncpg.InsufficientPrivilegeError, *_NOT_THERE):
        return True
    return False


@pytest.mark.parametrize("statements", [TO_BE_SOMEBODY_ELSE, TO_READ_MORE, TO_WRITE])
async def test_nothing_else_is_allowed(people: People, statements: Sequence[str]) -> None:
    async with people.connected(people.ada) as connection:
        # What a session may set says nothing about its rights.
        await connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            assert await refuses(connection, statement.format(bob=people.bob)), statement
            await connection.execute("ROLLBACK")
        assert await seen(connection) == DEMO_ONLY


async def test_no_lock_that_services_take_can_be_held(people: People) -> None:
    async with people.connected(people.ada) as connection:
        functions = await connection.fetch(
            """
            SELECT format('SELECT %I(%s)', proname, CASE pronargs WHEN 1 THEN '1' ELSE '1, 2' END) AS call,
                has_function_privilege(oid, 'EXECUTE') AS allowed
            FROM pg_proc WHERE proname ~ 'advisory' AND proname !~ 'unlock'
            """
        )
        assert len(functions) == 16
        assert [function["call"] for function in functions if function["allowed"]] == []
        for function in functions:
            assert await refuses(connection, function["call"]), function["call"]


async def test_a_superuser_closes_what_everybody_is_let(database: TestDatabase) -> None:
    """As on a server that is not the launcher's, by what `twinmesh sql-user create` prints."""
    async with admin(database) as connection, superuser(database) as owner:
        statements = await _open_again(owner, connection)
        # Services go on without another migration, and the next one lets new services in.
        await connection.execute("SELECT pg_advisory_lock(1)")
        for statement in statements:
            await owner.execute(statement)
        assert await sql_roles.statements_for_superuser(connection) == []
        async with db.pool(database.url("twinmesh_auth"), application="test", max_size=1) as pool:
            await pool.execute("SELECT pg_try_advisory_lock(1)")
        await ensure_roles(connection, [LATER], {"twinmesh_later": "its password"})
        assert await connection.fetchval(
            "SELECT has_function_privilege('twinmesh_later', 'pg_advisory_lock(bigint)', 'EXECUTE')"
        )


async def test_a_migrator_that_is_a_superuser_closes_it_itself(database: TestDatabase) -> None:
    async with admin(database) as connection, superuser(database) as owner:
        await _open_again(owner, connection)
        await ensure_roles(owner, [LATER], {"twinmesh_later": "its password"})
        assert await sql_roles.statements_for_superuser(connection) == []


@asynccontextmanager
async def superuser(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.superuser_url)
    try:
        yield connection
    finally:
        # The migrator's grants are nobody else's to take back, but end with its right to make them.
        await connection.execute(LET_EVERYBODY)
        await connection.execute("DROP OWNED BY twinmesh_later")
        await connection.execute("DROP ROLE twinmesh_later")
        await connection.close()


async def _open_again(owner: asyncpg.Connection, connection: asyncpg.Connection) -> list[str]:
    """Let everybody do what PostgreSQL lets everybody do; returns what is told to close it."""
    await owner.execute(LET_EVERYBODY)
    statements = await sql_roles.statements_for_superuser(connection)
    assert statements
    return statements


async def test_a_session_is_read_only_and_bounded_unless_it_says_otherwise(people: People) -> None:
    async with people.connected(people.ada) as connection:
        assert {
            name: await connection.fetchval("SELECT current_setting($1)", name) for name in sql_roles.SETTINGS
        } == {
            **sql_roles.SETTINGS,
            "transaction_timeout": "1min",
        }
        await connection.execute("SET statement_timeout = '10ms'")
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute("SELECT pg_sleep(10)")


async def test_only_so_many_connections_are_let_in(people: People) -> None:
    async with people.connected(people.ada), people.connected(people.ada):
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(people.url(people.ada))
    parts = urlsplit(people.url(people.ada))
    for other in ("postgres", "template1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(urlunsplit(parts._replace(path=f"/{other}")))


async def test_statistics_and_activity_tell_nothing_of_others(people: People) -> None:
    async with admin(people.database) as connection:
        await connection.execute("ANALYZE telemetry.series")
        assert await connection.fetchval("SELECT count(*) FROM pg_stats WHERE schemaname = 'telemetry'")
    async with people.connected(people.bob) as other, people.connected(people.ada) as connection:
        await other.fetch("SELECT 'a secret of bob'")
        assert not await connection.fetch("SELECT tablename FROM pg_stats WHERE schemaname = 'telemetry'")
        told = [
            row["query"]
            for row in await connection.fetch("SELECT query FROM pg_stat_activity WHERE query <> ''")
        ]
        assert not any("secret" in query for query in told if "pg_stat_activity" not in query)
        # A function of one's own choice is called with rows of one's own tenant only.
        await connection.fetch("SELECT * FROM series WHERE 1 / (device_id <> 'acme-pump')::int = 1")
        await connection.fetch("SELECT * FROM telemetry WHERE 1 / (value <> 2)::int = 1")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT * FROM series WHERE 1 / (device_id <> 'demo-pump')::int = 1")


async def test_the_rights_of_a_user_are_the_groups_and_nothing_more(people: People) -> None:
    async with admin(people.database) as connection:
        role = sql_roles.role_name(people.ada)
        row = await connection.fetchrow(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls AS powerful, "
            "rolconnlimit FROM pg_roles WHERE rolname = $1",
            role,
        )
        assert row is not None
        assert tuple(row) == (False, 2)
        memberships = await connection.fetch(
            "SELECT roleid::regrole::text AS role, inherit_option, set_option, admin_option "
            "FROM pg_auth_members WHERE member = $1::regrole",
            role,
        )
        assert [tuple(each) for each in memberships] == [("twinmesh_sql", True, False, False)]
        usable = await connection.fetch(
            "SELECT nspname, has_schema_privilege($1, oid, 'CREATE') AS creates FROM pg_namespace "
            "WHERE has_schema_privilege($1, oid, 'USAGE') AND nspname !~ '^pg_toast|^pg_temp'",
            role,
        )
        assert {tuple(each) for each in usable} == {
            ("pg_catalog", False),
            ("information_schema", False),
            ("public", False),
            ("twinmesh", False),
        }
        granted = await connection.fetch(
            """
            SELECT object.oid::regclass::text AS name, acl.privilege_type
            FROM pg_class AS object CROSS JOIN LATERAL aclexplode(object.relacl) AS acl
            WHERE acl.grantee IN ('twinmesh_sql'::regrole, $1::regrole)
            """,
            role,
        )
        assert {tuple(each) for each in granted} == {(f"twinmesh.{view}", "SELECT") for view in VIEWS}
        options = await connection.fetch(
            "SELECT relname, reloptions FROM pg_class WHERE relnamespace = 'twinmesh'::regnamespace"
        )
        assert {row["relname"]: row["reloptions"] for row in options} == {
            view: ["security_invoker=true"] for view in VIEWS
        }
        assert await sql_roles.statements_for_superuser(connection) == []


async def test_a_dropped_user_loses_access_at_once(people: People) -> None:
    async with admin(people.database) as connection:
        open_one = await asyncpg.connect(people.url(people.ada))
        assert await open_one.fetchval("SELECT count(*) FROM series") == 1
        assert [
            (user.role, user.tenant, user.connections) for user in await sql_roles.list_users(connection)
        ] == [
            (sql_roles.role_name(people.bob), "acme", 0),
            (sql_roles.role_name(people.ada), "demo", 1),
        ]
        await sql_roles.drop_user(connection, people.ada)
        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError)):
            await open_one.fetchval("SELECT count(*) FROM series")
        open_one.terminate()
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(people.url(people.ada))
        with pytest.raises(SqlUserError, match="there is no SQL user"):
            await sql_roles.drop_user(connection, people.ada)


async def test_users_of_a_closed_tenant_see_nothing_until_it_is_opened(people: People) -> None:
    async def close(*tenants: str) -> None:
        url = people.database.url("twinmesh_maintenance")
        async with db.pool(url, application="test", max_size=1) as pool:

            async def closed() -> list[ClosedTenant]:
                return [ClosedTenant(tenant, deletion_due=False, reported=False) for tenant in tenants]

            await SqlUserDoor(pool=pool, closed=closed).turn()

    async with people.connected(people.ada) as snapshot, people.connected(people.bob) as other:
        # What such a transaction sees, no change of rights takes away: its connection has to end.
        await snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert await snapshot.fetchval("SELECT count(*) FROM series")
        await close("demo", "nobody")
        with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresError)):
            await snapshot.fetchval("SELECT count(*) FROM series")
        snapshot.terminate()
        async with people.connected(people.ada) as renewed:
            assert await seen(renewed) == {view: set() for view in VIEWS}
        assert await seen(other) == dict.fromkeys(VIEWS, frozenset(["acme"]))
        await close()
        async with people.connected(people.ada) as resumed:
            assert await seen(resumed) == DEMO_ONLY
        assert await seen(other) == dict.fromkeys(VIEWS, frozenset(["acme"]))


async def test_no_user_is_made_in_a_suspended_tenant(people: People) -> None:
    async with admin(people.database) as connection:
        await connection.execute("UPDATE auth.tenant SET suspend_time = now() WHERE tenant_id = 'acme'")
        with pytest.raises(SqlUserError, match="tenant 'acme' is suspended"):
            await sql_roles.create_user(connection, "eve", tenant="acme", most_connections=1)


async def test_users_go_with_their_tenant(people: People) -> None:
    # A restored database may name roles that its new server does not have.
    async with admin(people.database) as connection:
        await connection.execute("INSERT INTO telemetry.sql_user VALUES ('sql_lost', 'acme')")
        before = next(step.version for step in migrations_of(OWNER) if step.name == "closed_tenants") - 1
        await migrate_down(connection, OWNER, to_version=before)
        await migrate_up(connection, [OWNER])
    async with db.pool(people.database.url("twinmesh_maintenance"), application="test", max_size=1) as pool:
        await delete_tenant(pool, None, "acme")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(people.url(people.bob))
    async with people.connected(people.ada) as connection:
        assert await seen(connection) == DEMO_ONLY


async def test_a_rotated_password_replaces_the_one_before(people: People) -> None:
    async with admin(people.database) as connection:
        before = people.url(people.ada)
        people.passwords[people.ada] = await sql_roles.rotate_password(connection, people.ada)
        async with people.connected(people.ada) as renewed:
            assert await renewed.fetchval("SELECT count(*) FROM series") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(before)


async def test_a_role_without_a_mapping_sees_nothing(people: People) -> None:
    async with admin(people.database) as connection:
        await connection.execute(
            "DELETE FROM telemetry.sql_user WHERE role_name = $1", sql_roles.role_name(people.ada)
        )
        async with people.connected(people.ada) as unmapped:
            assert await seen(unmapped) == {view: set() for view in VIEWS}
        await connection.execute(
            "INSERT INTO telemetry.sql_user VALUES ($1, 'demo')", sql_roles.role_name(people.ada)
        )


@pytest.mark.parametrize("name", ["", "Ada", "1st", "a b", "a-b", 'a"b', "a" * 41])
async def test_a_name_is_plain(database: TestDatabase, name: str) -> None:
    async with admin(database) as connection:
        with pytest.raises(SqlUserError, match="a name has small letters"):
            await sql_roles.create_user(connection, name, tenant="demo", most_connections=1)


async def test_a_user_is_made_once_and_of_a_tenant_that_exists(people: People) -> None:
    async with admin(people.database) as connection:
        with pytest.raises(SqlUserError, match="there is a role"):
            await sql_roles.create_user(connection, people.ada, tenant="acme", most_connections=1)
        with pytest.raises(SqlUserError, match="there is no tenant 'nobody'"):
            await sql_roles.create_user(connection, "eve", tenant="nobody", most_connections=1)


def told_statements() -> list[str]:
    """Return all SQL of docs/sql.md and of the dashboard, as Grafana would send it."""
    documented = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/sql.md").read_text(), re.DOTALL)
    dashboard = json.loads((GRAFANA / "dashboards/device.json").read_text())
    asked = [target["rawSql"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in dashboard["templating"]["list"]]
    filled = [
        re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - interval '2 days' AND now()", sql)
        .replace("${device:sqlstring}", "'demo-pump'")
        .replace("${metric:sqlstring}", "'flow'")
        for sql in asked
    ]
    assert len(documented) > 5
    assert len(filled) > 5
    assert not any("$" in sql for sql in filled)
    return [*documented, *filled]


async def test_what_is_documented_and_what_the_dashboard_asks_has_answers(people: People) -> None:
    async with recorder(people.database) as writer:
        await writer.commit("demo", [Sent("demo-pump", "flow", time.time_ns() // 1000, 1.0)])
    async with people.connected(people.ada) as connection:
        for statement in told_statements():
            assert await connection.fetch(statement), statement


def test_grafana_s_files_name_one_data_source_and_no_password() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/twinmesh.yaml").read_text())
    assert source["apiVersion"] == 1
    [found] = source["datasources"]
    assert found["secureJsonData"] == {"password": "$TWINMESH_SQL_PASSWORD"}
    dashboard = json.loads((GRAFANA / "dashboards/device.json").read_text())
    asking = [*dashboard["panels"], *dashboard["templating"]["list"]]
    asking += [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert {each["datasource"]["uid"] for each in asking} == {found["uid"]}
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/twinmesh.yaml").read_text())["providers"]
    assert provider["type"] == "file"
