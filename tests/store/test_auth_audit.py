"""Table auth.audit_event: what is kept, for how long, and how it is found."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from google.rpc import code_pb2

from auth_svc.audit import AuditEvents, AuditQuestion, StoredEvent
from auth_svc.stores.audit_events import _NEWEST, AuditEventStore
from meshkit import db
from meshkit.audit import AuditEvent
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.testing.clock import ManualClock
from meshkit.testing.database import TestDatabase

NOW = SystemClock().now_us()
DAY_US = 24 * 3600 * MICROS_PER_SECOND
EVENT = AuditEvent(
    id="0123456789abcdef-1",
    time_us=NOW,
    tenant="demo",
    principal="user:ada",
    credential_id="s1",
    address="192.0.2.7",
    rpc="/a.b/C",
    targets=["pump-1", "pump-2"],
    code=code_pb2.OK,
    duration_us=90_000_000_001,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    changed_fields=["role"],
    received=3,
    sent=2**40,
)
DEMO = AuditQuestion(tenant="demo")


@pytest.fixture
async def pool(database: TestDatabase) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(database.url("twinmesh_auth"), application="test") as opened:
        yield opened


@pytest.fixture
async def admin(database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.admin_url)
    yield connection
    await connection.close()


@pytest.fixture
def events(pool: asyncpg.Pool) -> AuditEvents:
    return AuditEvents(store=AuditEventStore(pool=pool), kept_days=90, clock=ManualClock(NOW))


def numbered(count: int, **fields: object) -> list[AuditEvent]:
    """Events of which two have the same time."""
    return [
        replace(EVENT, id=f"0123456789abcdef-{number}", time_us=NOW - number // 2, **fields)  # type: ignore[arg-type]
        for number in range(count)
    ]


async def found(events: AuditEvents, question: AuditQuestion) -> list[str]:
    page, more = await events.page(question, before=None, limit=100)
    assert not more
    return [stored.event.id.partition("-")[2] for stored in page]


async def test_an_event_comes_back_as_it_was(events: AuditEvents) -> None:
    await events.record([EVENT], recorder="asset_svc")
    page, more = await events.page(DEMO, before=None, limit=10)
    assert (page, more) == ([StoredEvent(EVENT, "asset_svc")], False)


async def test_what_is_recorded_again_is_kept_once(events: AuditEvents) -> None:
    await events.record([EVENT], recorder="asset_svc")
    await events.record([replace(EVENT, principal="user:eve"), *numbered(1)], recorder="asset_svc")
    page, _ = await events.page(DEMO, before=None, limit=10)
    assert [stored.event.principal for stored in page] == ["user:ada", "user:ada"]


async def test_each_tenant_has_its_own_and_nobodys_are_the_installations(events: AuditEvents) -> None:
    await events.record([replace(EVENT, tenant=tenant) for tenant in ("", "demo", "rival")], recorder="x")
    for tenant in ("system", "demo", "rival"):
        page, _ = await events.page(AuditQuestion(tenant=tenant), before=None, limit=10)
        assert [stored.event.tenant for stored in page] == [tenant]
    assert await found(events, AuditQuestion(tenant="")) == []


async def test_filters(events: AuditEvents) -> None:
    others = {
        "1": {"principal": "api_key:k1"},
        "2": {"rpc": "/a.b/D"},
        "3": {"code": code_pb2.PERMISSION_DENIED},
        "4": {"targets": ["pump-9", "pump-3"]},
        "5": {"time_us": NOW - 10},
    }
    made = [
        replace(EVENT, **{"time_us": NOW - int(number), "id": f"0123456789abcdef-{number}", **fields})
        for number, fields in others.items()
    ]
    await events.record(made, recorder="asset_svc")
    assert await found(events, DEMO) == ["1", "2", "3", "4", "5"]
    assert await found(events, replace(DEMO, principal="api_key:k1")) == ["1"]
    assert await found(events, replace(DEMO, rpc="/a.b/D")) == ["2"]
    assert await found(events, replace(DEMO, codes=(code_pb2.PERMISSION_DENIED,))) == ["3"]
    assert await found(events, replace(DEMO, codes=(code_pb2.PERMISSION_DENIED, 0), rpc="/a.b/C")) == [
        *("1", "3", "4", "5"),
    ]
    assert await found(events, replace(DEMO, target="pump-3")) == ["4"]
    assert await found(events, replace(DEMO, start_us=NOW - 3)) == ["1", "2", "3"]
    assert await found(events, replace(DEMO, end_us=NOW - 3)) == ["4", "5"]


async def test_pages_hold_each_event_once(events: AuditEvents) -> None:
    made = numbered(25)
    await events.record(made, recorder="asset_svc")
    seen: list[StoredEvent] = []
    more = True
    while more:
        page, more = await events.page(DEMO, before=seen[-1].position if seen else None, limit=4)
        seen += page
    newest_first = sorted(made, key=lambda event: (event.time_us, event.id), reverse=True)
    assert [stored.event for stored in seen] == newest_first


async def test_all_of_them_the_oldest_first(events: AuditEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth_svc.audit._EXPORTED_AT_ONCE", 4)
    made = [replace(event, time_us=event.time_us - 1) for event in numbered(24)]
    await events.record([*made, replace(EVENT, time_us=NOW + 1)], recorder="asset_svc")
    parts = [part async for part in events.all(DEMO)]
    oldest_first = sorted(made, key=lambda event: (event.time_us, event.id))
    assert [stored.event for part in parts for stored in part] == oldest_first


async def test_a_clock_that_is_far_off_loses_nothing(events: AuditEvents) -> None:
    strays = [
        replace(EVENT, id=f"0123456789abcdef-{time_us}", time_us=time_us)
        for time_us in (0, NOW + 400 * DAY_US)
    ]
    await events.record(strays, recorder="asset_svc")
    page, _ = await events.page(DEMO, before=None, limit=10)
    assert [stored.event.time_us for stored in page] == [NOW + DAY_US, NOW - DAY_US]


async def _days(admin: asyncpg.Connection) -> list[str]:
    rows = await admin.fetch(
        """
        SELECT right(inhrelid::regclass::text, 8) AS day FROM pg_inherits
        WHERE inhparent = 'auth.audit_event'::regclass ORDER BY 1
        """
    )
    return [row["day"] for row in rows]


async def _make_day(admin: asyncpg.Connection, back: int) -> str:
    day = datetime.now(UTC).date() - timedelta(days=back)
    name = f"{day:%Y%m%d}"
    await admin.execute(
        f"""
        CREATE TABLE auth.audit_event_{name} PARTITION OF auth.audit_event
        FOR VALUES FROM ('{day}T00:00:00Z') TO ('{day + timedelta(days=1)}T00:00:00Z')
        """
    )
    return name


async def test_days_are_made_ahead_and_dropped_when_they_are_over_for_long(
    pool: asyncpg.Pool, admin: asyncpg.Connection
) -> None:
    tomorrow = f"{datetime.now(UTC).date() + timedelta(days=1):%Y%m%d}"
    await admin.execute(f"DROP TABLE auth.audit_event_{tomorrow}")
    kept, over = await _make_day(admin, 40), await _make_day(admin, 41)
    events = AuditEvents(store=AuditEventStore(pool=pool), kept_days=40, clock=SystemClock())
    await events.keep_days()
    days = await _days(admin)
    assert kept in days
    assert over not in days
    assert tomorrow in days


async def test_the_service_can_drop_nothing_of_the_last_month(
    pool: asyncpg.Pool, admin: asyncpg.Connection
) -> None:
    before = await _days(admin)
    for days in (29, 0, -1, None):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="30 days at least"):
            await pool.fetchval("SELECT auth.drop_audit_days($1)", days)
    for day in before:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(f"DROP TABLE auth.audit_event_{day}")
    assert await _days(admin) == before


async def test_days_are_nobodys_to_touch_directly(pool: asyncpg.Pool, admin: asyncpg.Connection) -> None:
    for day in await _days(admin):
        for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"):
            allowed = await admin.fetchval(
                "SELECT has_table_privilege('twinmesh_auth', $1, $2)", f"auth.audit_event_{day}", privilege
            )
            assert not allowed, (day, privilege)
    granted = await admin.fetch(
        """
        SELECT grantee, privilege_type FROM information_schema.role_table_grants
        WHERE table_schema = 'auth' AND table_name LIKE 'audit_event%' AND grantee <> current_user
        """
    )
    assert {tuple(row) for row in granted} == {("twinmesh_auth", "SELECT"), ("twinmesh_auth", "INSERT")}


@pytest.mark.parametrize("principal", ["", "user:7"])
async def test_a_page_is_found_by_index(
    pool: asyncpg.Pool, admin: asyncpg.Connection, principal: str
) -> None:
    await admin.execute(
        """
        INSERT INTO auth.audit_event
        SELECT 'demo', now() - n * interval '1 ms', 'e' || n, 'x', 'user:' || n % 1000, '', '', '/a.b/C',
               '{}', 0, '0', '', '{}', 0, 0
        FROM generate_series(1, 20000) AS n
        """
    )
    await admin.execute("ANALYZE auth.audit_event")
    given = ["'demo'", "NULL", "NULL", f"'{principal}'", "''", "'{}'", "''", "now()", "''", "10"]
    asked = re.sub(r"\$(\d+)", lambda place: given[int(place[1]) - 1], _NEWEST)
    async with db.tenant_transaction(pool, "demo") as connection:
        lines = await connection.fetch(f"EXPLAIN {asked}")
    plan = "\n".join(line[0] for line in lines)
    assert "Seq Scan" not in plan, plan
    assert ("principal" in plan) == bool(principal), plan
