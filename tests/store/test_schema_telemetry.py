"""The telemetry schema's catalog: tenancy, rights and bounds are what docs/adr/0002 says."""

import asyncpg
import pytest

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import MICROS_PER_DAY, Kind
from tests.store.rights import functions, rights_on_columns, rights_on_tables
from tests.store.writing import T0, columns, request, running_writer

ROLLUPS = ("rollup_minute", "rollup_hour", "rollup_day", "rollup_horizon", "rollup_stale")
READ = {"SELECT"}
KEEP = {"SELECT", "INSERT", "UPDATE"}
# Everything that anybody may do; what is not here is refused.
RIGHTS = {
    "twinmesh_ingest": {
        "commit_order": {"USAGE"},
        "segment": {"INSERT"},
        "sealed_segment": {"INSERT"},
        "restore": KEEP,
        "dead_letter": {"SELECT", "INSERT", "DELETE"},
        "raw_device_set": {"SELECT", "INSERT"},
        "raw_message": {"SELECT", "INSERT"},
        "event": {"INSERT"},
        "ingest_instance": KEEP,
        "ingest_commit": KEEP,
        "writer_cursor": KEEP,
        "writer_outcome": KEEP,
        "request_id": KEEP,
        "series": KEEP,
        "detector_state": KEEP,
        "ingest_policy": KEEP,
        "storage_policy": KEEP,
        "storage_room": READ,
        "limit_hit": KEEP,
        "limit_bucket": READ,
        "limit_lease": READ,
        "placement": {"SELECT", "INSERT"},
        "backfill": READ,
        "chunked_message": {*KEEP, "DELETE"},
        "message_chunk": {*READ, "INSERT", "DELETE"},
    },
    "twinmesh_twin_feed": dict.fromkeys(
        (
            "series",
            "segment",
            "sealed_segment",
            "series_latest",
            "ingest_instance",
            "ingest_commit",
            "feed_consumer",
            "commit_order",
        ),
        READ,
    ),
    "twinmesh_twin_query": dict.fromkeys(
        (
            "series",
            "segment",
            "sealed_segment",
            "archive_object",
            "series_latest",
            "event",
            "placement",
            "feed_consumer",
            *ROLLUPS,
            "storage_policy",
            "sample_horizon",
            "storage_day",
            "storage_device",
            "storage_room",
        ),
        READ,
    ),
    "twinmesh_maintenance": {
        "commit_order": READ,
        "archive": READ,
        "archive_object": {*READ, "INSERT", "DELETE"},
        "restore": {*READ, "DELETE"},
        "series": READ,
        "segment": {*READ, "DELETE"},
        "sealed_segment": {*READ, "INSERT", "DELETE"},
        "ingest_instance": READ,
        "ingest_commit": {*READ, "DELETE"},
        "feed_consumer": {*KEEP, "DELETE"},
        "series_latest": KEEP,
        "backfill": {*READ, "DELETE"},
        "dead_letter": {*READ, "DELETE"},
        "limit_bucket": {*READ, "DELETE"},
        "limit_hit": {*READ, "DELETE"},
        "limit_lease": {*READ, "DELETE"},
        **{table: {*KEEP, "DELETE"} for table in ROLLUPS},
        "event": {*READ, "DELETE"},
        "storage_policy": READ,
        "sample_horizon": KEEP,
        "storage_source": {*KEEP, "DELETE"},
        "storage_day": {*KEEP, "DELETE"},
        "storage_device": {*KEEP, "DELETE"},
        "storage_room": {*KEEP, "DELETE"},
    },
}
COLUMN_RIGHTS = (
    {
        *(
            ("twinmesh_maintenance", "ingest_instance", column, "UPDATE")
            for column in ("closed", "closed_at", "floor_commit_no")
        ),
        ("twinmesh_maintenance", "archive_object", "retired_at", "UPDATE"),
        *(
            ("twinmesh_maintenance", "restore", column, "UPDATE")
            for column in ("state", "days", "days_done", "samples", "error", "finished_at")
        ),
        *(
            ("twinmesh_ingest", "dead_letter", column, "UPDATE")
            for column in (
                "device_ids",
                "reason",
                "message",
                "payload",
                "payload_format",
                "sample_count",
                "replay_count",
                "last_replay_at",
            )
        ),
    }
    | {
        ("twinmesh_maintenance", "ingest_policy", column, "SELECT")
        for column in ("tenant_id", "raw_retention", "dead_letter_retention")
    }
    | {
        ("twinmesh_twin_query", table, column, "SELECT")
        for table, columns_read in {
            "ingest_instance": ("instance", "last_commit_no", "floor_commit_no"),
            "ingest_commit": (
                "instance",
                "commit_no",
                "order_no",
                "days",
                "bulk_series",
                "bulk_starts",
                "bulk_ends",
            ),
        }.items()
        for column in columns_read
    }
)
COLUMN_RIGHTS |= {
    ("twinmesh_maintenance", "raw_message", column, "SELECT")
    for column in ("tenant_id", "received_at", "payload")
}
COLUMN_RIGHTS |= {
    ("twinmesh_twin_query", "storage_source", column, "SELECT")
    for column in ("source", "tier", "measured_at", "estimated")
}
# People see columns of what the views of schema twinmesh show, and nothing directly: they cannot name it.
SQL_COLUMNS = {
    "sql_user": "role_name tenant_id",
    "series": "tenant_id series_id device_id metric kind unit",
    "segment": "tenant_id series_id start_time end_time times doubles ints bools strings points codes quality"
    " order_no",
    "series_latest": "tenant_id series_id time double_value int_value bool_value string_value point_value"
    " quality",
    "event": "tenant_id event_id device_id asset_id type severity time received_at message attributes",
    **dict.fromkeys(
        ("rollup_minute", "rollup_hour", "rollup_day"),
        "tenant_id series_id start_time count min max sum mean m2 first last first_time last_time anomalies"
        " quality_sum quality_count stddev quality",
    ),
}
COLUMN_RIGHTS |= {
    ("twinmesh_sql", table, column, "SELECT")
    for table, columns in SQL_COLUMNS.items()
    for column in columns.split()
}
# Becomes a part of the statement that calls it: with its caller's rights, and all names in full.
INLINED = {"array_bytes"}
FUNCTION_RIGHTS = {
    ("twinmesh_twin_query", "array_bytes"),
    ("twinmesh_maintenance", "array_bytes"),
    ("twinmesh_ingest", "create_backfill"),
    ("twinmesh_ingest", "ensure_sealed_months"),
    ("twinmesh_ingest", "hold_capacity"),
    ("twinmesh_ingest", "take_tokens"),
    ("twinmesh_maintenance", "close_sql_users"),
    ("twinmesh_maintenance", "delete_tenant_rows"),
    ("twinmesh_maintenance", "drop_raw_days"),
    ("twinmesh_maintenance", "drop_request_windows"),
    ("twinmesh_maintenance", "drop_rollup_days"),
    ("twinmesh_maintenance", "drop_sealed_month"),
    ("twinmesh_maintenance", "empty_sealed_months"),
    ("twinmesh_maintenance", "ensure_raw_days"),
    ("twinmesh_maintenance", "ensure_request_windows"),
    ("twinmesh_maintenance", "ensure_rollup_days"),
    ("twinmesh_maintenance", "ensure_sealed_months"),
    ("twinmesh_maintenance", "ensure_segment_days"),
    ("twinmesh_maintenance", "drop_segment_days"),
    ("twinmesh_maintenance", "expire_raw_messages"),
    ("twinmesh_maintenance", "raw_tenants"),
    ("twinmesh_maintenance", "summarize_segment_days"),
}
TENANT = (
    "(tenant_id = ( SELECT NULLIF(current_setting('twinmesh.tenant'::text, true), ''::text) AS \"nullif\"))"
)
OF_SQL_USER = (
    "(tenant_id = ( SELECT u.tenant_id\n   FROM telemetry.sql_user u\n  WHERE (u.role_name = CURRENT_USER)))"
)
TENANT_OR_ALL = (
    "((tenant_id = ''::text) OR (tenant_id = ( SELECT NULLIF(current_setting('twinmesh.tenant'::text, true), "
    "''::text) AS \"nullif\")))"
)
POLICIES = {
    ("sql_user", "twinmesh_sql"): ("SELECT", "((role_name = CURRENT_USER) AND (NOT is_closed))"),
    **{(table, "twinmesh_sql"): ("SELECT", OF_SQL_USER) for table in SQL_COLUMNS if table != "sql_user"},
    **{
        (table, "twinmesh_twin_query"): ("SELECT", TENANT)
        for table in (
            "series",
            "segment",
            "sealed_segment",
            "archive_object",
            "series_latest",
            "event",
            "placement",
            *ROLLUPS,
            "storage_policy",
            "sample_horizon",
            "storage_day",
            "storage_device",
        )
    },
    ("rollup_horizon", "twinmesh_twin_query"): ("SELECT", TENANT_OR_ALL),
    **{
        (table, "twinmesh_twin_feed"): ("SELECT", "true")
        for table in ("series", "segment", "sealed_segment", "series_latest")
    },
    **{
        (table, "twinmesh_maintenance"): ("SELECT", "true")
        for table in ("series", "ingest_policy", "storage_policy", "raw_message")
    },
    **{
        (table, "twinmesh_maintenance"): ("ALL", "true")
        for table in (
            "segment",
            "sealed_segment",
            "archive_object",
            "restore",
            "series_latest",
            "backfill",
            "dead_letter",
            "limit_bucket",
            "limit_hit",
            "limit_lease",
            *ROLLUPS,
            "event",
            "sample_horizon",
            "storage_day",
            "storage_device",
        )
    },
}


async def test_only_the_rights_listed_are_granted(connection: asyncpg.Connection) -> None:
    assert await rights_on_tables(connection, "telemetry") == RIGHTS
    assert await rights_on_columns(connection, "telemetry") == COLUMN_RIGHTS


async def test_functions_are_bound_to_their_schema_and_to_few_roles(connection: asyncpg.Connection) -> None:
    rows = await functions(connection, "telemetry")
    granted = {(grantee, row["proname"]) for row in rows for grantee in row["grantees"]}
    assert granted == FUNCTION_RIGHTS
    definers = {name for _, name in FUNCTION_RIGHTS} - INLINED
    for row in rows:
        assert not row["for_all"]
        assert row["prosecdef"] == (row["proname"] in definers)
        assert row["proname"] in INLINED or "search_path=pg_catalog" in row["proconfig"]


async def test_only_the_policies_listed_exist(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        "SELECT tablename, roles, cmd, qual, with_check FROM pg_policies WHERE schemaname = 'telemetry'"
    )
    assert {(row["tablename"], *row["roles"]): (row["cmd"], row["qual"]) for row in rows} == POLICIES
    assert {row["with_check"] for row in rows if row["cmd"] == "ALL"} == {"true"}


async def test_unique_keys_of_tenant_tables_start_with_the_tenant(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        """
        SELECT index.indexrelid::regclass::text AS name, first.attname
        FROM pg_index AS index
        JOIN pg_class AS object ON object.oid = index.indrelid
        JOIN pg_attribute AS first ON first.attrelid = object.oid AND first.attnum = index.indkey[0]
        WHERE object.relnamespace = 'telemetry'::regnamespace AND index.indisunique
          -- A role is of one tenant: it says whose, and nobody but itself reads its row.
          AND object.relname <> 'sql_user'
          AND EXISTS (
              SELECT FROM pg_attribute WHERE attrelid = object.oid AND attname = 'tenant_id'
          )
        """
    )
    assert rows
    assert {row["attname"] for row in rows} == {"tenant_id"}


async def test_ingests_transactions_end(connection: asyncpg.Connection) -> None:
    settings = await connection.fetchval("SELECT rolconfig FROM pg_roles WHERE rolname = 'twinmesh_ingest'")
    assert set(settings) == {"idle_in_transaction_session_timeout=5s", "transaction_timeout=30s"}


async def test_every_day_has_its_own_brin_on_order_alone(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        """
        SELECT indexdef FROM pg_indexes
        WHERE schemaname = 'telemetry' AND tablename LIKE 'segment_2%' AND indexdef LIKE '%brin%'
        """
    )
    days = await connection.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry.segment'::regclass"
    )
    assert len(rows) == days > 0
    assert all(row["indexdef"].endswith("USING brin (order_no) WITH (autosummarize='on')") for row in rows)


async def test_a_tenant_s_reader_sees_that_tenant_only(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        for series, tenant in enumerate(["demo", "acme"]):
            await writer.write(request(None, columns(Kind.INT, [(series, 1, 1)]), tenant=tenant))
    async with db.pool(database.url("twinmesh_twin_query"), application="test") as pool:
        assert await pool.fetchval("SELECT count(*) FROM telemetry.segment") == 0
        for tenant, seen in (("demo", [0]), ("acme", [1]), ("", []), ("other", [])):
            async with db.tenant_transaction(pool, tenant) as connection:
                rows = await connection.fetch("SELECT series_id FROM telemetry.segment")
            assert [row["series_id"] for row in rows] == seen
        day = T0 // MICROS_PER_DAY
        name = await pool.fetchval("SELECT to_char(date '1970-01-01' + $1::int, 'YYYYMMDD')", day)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.fetchval(f"SELECT count(*) FROM telemetry.segment_{name}")
    async with db.pool(database.url("twinmesh_twin_feed"), application="test") as pool:
        assert await pool.fetchval("SELECT count(*) FROM telemetry.segment") == 2


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM telemetry.segment",
        "DELETE FROM telemetry.segment",
        "DELETE FROM telemetry.request_id",
        "TRUNCATE telemetry.writer_cursor",
        "INSERT INTO telemetry.backfill VALUES ('demo', 'b', 'p', 1, 2, now())",
        "SELECT telemetry.ensure_segment_days(1, 1)",
        "SELECT telemetry.make_segment_day(date '2100-01-01')",
        "CREATE TABLE telemetry.mine (n int)",
    ],
)
async def test_ingest_may_do_nothing_else(database: TestDatabase, statement: str) -> None:
    connection = await asyncpg.connect(database.url("twinmesh_ingest"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT telemetry.ensure_segment_days(401, 1)",
        "SELECT telemetry.drop_segment_days(-1, ARRAY[]::date[])",
        "SELECT telemetry.drop_segment_days(401, ARRAY[]::date[])",
        "SELECT telemetry.ensure_segment_days(1, 32)",
        "SELECT telemetry.ensure_segment_days(-1, 1)",
        "SELECT telemetry.ensure_request_windows('25 hours')",
        "SELECT telemetry.ensure_rollup_days(ARRAY[date '2020-01-01'])",
        "SELECT telemetry.ensure_rollup_days(ARRAY[date '2100-01-01'])",
        "SELECT telemetry.drop_request_windows('59 minutes')",
        f"SELECT telemetry.create_backfill('t', 'i', 'p', {T0}, {T0}, '1 day')",
        f"SELECT telemetry.create_backfill('t', 'i', 'p', {T0 - 401 * MICROS_PER_DAY}, {T0}, '1 day')",
        f"SELECT telemetry.create_backfill('t', 'i', 'p', {T0}, {T0 + 3 * MICROS_PER_DAY}, '1 day')",
        "SELECT telemetry.create_backfill('t', 'i', 'p', 0, 1, '1 day')",
    ],
)
async def test_nobody_makes_partitions_without_end(connection: asyncpg.Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await connection.execute(statement)
