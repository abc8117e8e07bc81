"""Exactly once: sequences of writers, and request ids."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from meshkit.errors import DomainError
from meshkit.testing.database import TestDatabase
from telemetry_store.columns import Kind
from telemetry_store.cursors import OUTCOMES_KEPT, Recorded
from telemetry_store.request_ids import RequestKey, claim
from telemetry_store.requests import OpenedCursor, RequestIdentity, WriteRequest, WriteResult
from telemetry_store.writer import TelemetryWriter
from tests.store.writing import (
    admin,
    columns,
    commit_numbers,
    numbered,
    reason_of,
    request,
    running_writer,
    stored_ints,
    until_blocked,
)


async def refusal(writer: TelemetryWriter, refused: WriteRequest) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await writer.write(refused)
    return caught.value


def with_id(request_id: str, *, value: int = 1, **kwargs: str) -> WriteRequest:
    kwargs.setdefault("content", f"{request_id} {value}")
    return request(RequestIdentity(request_id), columns(Kind.INT, [(1, value, value)]), **kwargs)


async def last_sequence(connection: asyncpg.Connection, writer_id: str = "w") -> int:
    found: int = await connection.fetchval(
        "SELECT last_sequence FROM telemetry.writer_cursor WHERE writer_id = $1", writer_id
    )
    return found


async def test_a_repeated_sequence_gets_the_recorded_outcome_and_stores_nothing(
    database: TestDatabase,
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        first = await writer.write(numbered(1))
        await writer.write(numbered(2))
        again = await writer.write(numbered(1))
        assert (first, again) == (WriteResult(b"stored w 1", False), WriteResult(b"stored w 1", True))
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2)]
        assert await commit_numbers(connection) == [(1, 1), (1, 2)]  # A duplicate alone takes no number.


async def test_a_gap_names_the_expected_sequence_and_consumes_nothing(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        error = await refusal(writer, numbered(4))
        assert (reason_of(error), error.metadata) == ("SEQUENCE_GAP", {"expected": "2"})
        assert await last_sequence(connection) == 1
        assert not (await writer.write(numbered(2))).duplicate


async def test_a_sequence_with_other_content_is_reused(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        error = await refusal(writer, numbered(1, content="something else"))
        assert (reason_of(error), error.metadata) == ("SEQUENCE_REUSED", {"sequence": "1"})
        assert await stored_ints(connection) == [(1, 1, 1)]


async def test_outcomes_are_kept_for_the_last_batches_only(database: TestDatabase) -> None:
    last = OUTCOMES_KEPT + 1
    async with running_writer(database) as writer, admin(database) as connection:
        # In one group: the ring is written once around within it.
        await asyncio.gather(*(writer.write(numbered(sequence)) for sequence in range(1, last + 1)))
        assert reason_of(await refusal(writer, numbered(1))) == "OUTCOME_EXPIRED"
        assert (await writer.write(numbered(2))).outcome == b"stored w 2"
        assert (await writer.write(numbered(last))).outcome == f"stored w {last}".encode()
        assert await last_sequence(connection) == last
        assert await connection.fetchval("SELECT count(*) FROM telemetry.writer_outcome") == OUTCOMES_KEPT


async def test_repetitions_in_one_group_are_duplicates_too(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        answers = await asyncio.gather(
            writer.write(numbered(1)),
            writer.write(numbered(1)),
            writer.write(numbered(1, content="other")),
            writer.write(numbered(3)),
            writer.write(numbered(2)),
            return_exceptions=True,
        )
        assert answers[0] == WriteResult(b"stored w 1", False)
        assert answers[1] == WriteResult(b"stored w 1", True)
        assert isinstance(answers[2], DomainError)
        assert reason_of(answers[2]) == "SEQUENCE_REUSED"
        assert isinstance(answers[3], DomainError)
        assert reason_of(answers[3]) == "SEQUENCE_GAP"
        assert answers[4] == WriteResult(b"stored w 2", False)
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2)]


async def test_a_writer_belongs_to_the_principal_that_used_it_first(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.write(numbered(1))
        assert reason_of(await refusal(writer, numbered(2, principal="user:eve"))) == "WRITER_NOT_OWNED"
        assert reason_of(await refusal(writer, numbered(1, principal="user:eve"))) == "WRITER_NOT_OWNED"
        with pytest.raises(DomainError) as caught:
            await writer.open_writer(tenant="demo", principal="user:eve", writer_id="w")
        assert reason_of(caught.value) == "WRITER_NOT_OWNED"
        # Another tenant's writer of the same name is another writer.
        assert not (await writer.write(numbered(1, principal="user:eve", tenant="acme"))).duplicate


async def test_opening_fences_older_streams_and_not_unary_callers(database: TestDatabase) -> None:
    async with running_writer(database) as writer, running_writer(database) as other:
        first = await writer.open_writer(tenant="demo", principal="user:ada", writer_id="w")
        assert first == OpenedCursor(epoch=1, last_sequence=0)
        await writer.write(numbered(1, epoch=1))
        second = await other.open_writer(tenant="demo", principal="user:ada", writer_id="w")
        assert second == OpenedCursor(epoch=2, last_sequence=1)
        assert reason_of(await refusal(writer, numbered(2, epoch=1))) == "FENCED"
        assert not (await other.write(numbered(2, epoch=2))).duplicate
        assert not (await writer.write(numbered(3, epoch=None))).duplicate


async def opens(writer: TelemetryWriter, session_id: str, *, resume: bool = False) -> OpenedCursor:
    return await writer.open_writer(
        tenant="demo", principal="user:ada", writer_id="w", session_id=session_id, resume=resume
    )


async def test_only_the_run_that_opened_a_writer_last_resumes_it(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        assert (await opens(writer, "a")).epoch == 1
        assert (await opens(writer, "a", resume=True)).epoch == 2
        assert (await opens(writer, "b")).epoch == 3
        with pytest.raises(DomainError) as caught:
            await opens(writer, "a", resume=True)
        assert reason_of(caught.value) == "FENCED"
        await writer.write(numbered(1, epoch=3))  # The other one was not disturbed …
        assert (await opens(writer, "b", resume=True)).epoch == 4  # … and goes on.
        assert (await opens(writer, "a")).epoch == 5  # Somebody's decision.
        with pytest.raises(DomainError) as caught:
            await writer.open_writer(
                tenant="demo", principal="user:eve", writer_id="w", session_id="a", resume=True
            )
        assert reason_of(caught.value) == "WRITER_NOT_OWNED"


async def test_a_run_without_a_name_takes_over_and_cannot_be_resumed_behind(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await opens(writer, "a")
        assert (await opens(writer, "")).epoch == 2
        with pytest.raises(DomainError) as caught:
            await opens(writer, "a", resume=True)
        assert reason_of(caught.value) == "FENCED"


async def test_a_writer_that_nobody_opened_is_resumed_by_anybody(database: TestDatabase) -> None:
    """So a client finds out by the cursor that the database lost what it had."""
    async with running_writer(database) as writer:
        await writer.write(numbered(1))
        assert await opens(writer, "a", resume=True) == OpenedCursor(epoch=1, last_sequence=1)
        with pytest.raises(DomainError) as caught:
            await opens(writer, "b", resume=True)
        assert reason_of(caught.value) == "FENCED"


async def test_of_two_runs_at_once_one_has_the_writer(database: TestDatabase) -> None:
    """The second one waits for the first one's row, and is judged by what it says then."""
    async with running_writer(database) as writer, admin(database) as connection:
        await opens(writer, "a")
        async with connection.transaction():
            await connection.execute("UPDATE telemetry.writer_cursor SET session_id = 'b', epoch = 2")
            resuming = asyncio.create_task(opens(writer, "a", resume=True))
            await until_blocked(connection)
        with pytest.raises(DomainError) as caught:
            await resuming
        assert reason_of(caught.value) == "FENCED"
        assert await connection.fetchval("SELECT epoch FROM telemetry.writer_cursor") == 2


async def test_writers_are_opened_together(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        opened = await asyncio.gather(
            *(
                writer.open_writer(tenant="demo", principal="user:ada", writer_id=f"w{number}")
                for number in range(100)
            )
        )
        assert opened == [OpenedCursor(epoch=1, last_sequence=0)] * 100
        # The rows of a statement bear the number of one transaction.
        assert (
            await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM telemetry.writer_cursor") <= 2
        )


async def test_of_writers_opened_together_each_gets_its_own_answer(database: TestDatabase) -> None:
    async with running_writer(database) as writer:
        await writer.open_writer(tenant="demo", principal="user:eve", writer_id="of-eve")
        await writer.open_writer(tenant="demo", principal="user:ada", writer_id="w", session_id="b")
        *opened, fenced, not_owned = await asyncio.gather(
            opens(writer, "b", resume=True),
            opens(writer, "b", resume=True),
            opens(writer, "b"),
            opens(writer, "a", resume=True),
            writer.open_writer(tenant="demo", principal="user:ada", writer_id="of-eve"),
            return_exceptions=True,
        )
        # Streams that look alike still fence one another.
        assert sorted(cursor.epoch for cursor in opened if isinstance(cursor, OpenedCursor)) == [2, 3, 4]
        assert isinstance(fenced, DomainError)
        assert reason_of(fenced) == "FENCED"
        assert isinstance(not_owned, DomainError)
        assert reason_of(not_owned) == "WRITER_NOT_OWNED"


async def test_a_writer_locked_elsewhere_delays_its_own_open_only(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await opens(writer, "a")
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.writer_cursor FOR UPDATE")
            delayed = asyncio.create_task(opens(writer, "a"))
            other = await writer.open_writer(tenant="demo", principal="user:ada", writer_id="other")
            assert other.epoch == 1
            await until_blocked(connection)
            assert not delayed.done()
        assert (await delayed).epoch == 2


async def test_a_writer_locked_for_long_is_not_opened_and_keeps_nobody_waiting(
    database: TestDatabase,
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await opens(writer, "a")
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.writer_cursor FOR UPDATE")
            delayed = [asyncio.create_task(opens(writer, "a")) for _ in range(6)]
            await until_blocked(connection, 2)
            # Though there are fewer connections than clients that wait.
            other = await writer.open_writer(tenant="demo", principal="user:ada", writer_id="other")
            assert other.epoch == 1
            assert not any(task.done() for task in delayed)
            for error in await asyncio.gather(*delayed, return_exceptions=True):
                assert isinstance(error, DomainError)
                assert reason_of(error) == "DEPENDENCY_UNAVAILABLE"
                assert error.message == "writer 'w' is being committed by another process; retry"
        assert (await opens(writer, "a")).epoch == 2


async def test_refused_content_is_remembered_without_samples(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        assert await writer.write(numbered(1, samples=[])) == WriteResult(b"stored w 1", False)
        assert await writer.write(numbered(1, samples=[])) == WriteResult(b"stored w 1", True)
        assert await writer.write(numbered(2)) == WriteResult(b"stored w 2", False)
        days = await connection.fetch("SELECT days FROM telemetry.ingest_commit ORDER BY commit_no")
        assert [len(row["days"]) for row in days] == [0, 1]


async def test_two_processes_on_one_cursor_commit_each_batch_once(database: TestDatabase) -> None:
    batches = 30
    async with (
        running_writer(database) as one,
        running_writer(database) as two,
        admin(database) as connection,
    ):
        for sequence in range(1, batches + 1):
            answers = await asyncio.gather(*(writer.write(numbered(sequence)) for writer in (one, two, one)))
            assert {answer.outcome for answer in answers} == {f"stored w {sequence}".encode()}
            assert sorted(answer.duplicate for answer in answers) == [False, True, True]
        assert await stored_ints(connection) == [(1, number, number) for number in range(1, batches + 1)]
        commits = await commit_numbers(connection)
        for instance in (1, 2):
            numbers = [number for of, number in commits if of == instance]
            assert numbers == list(range(1, len(numbers) + 1))


async def test_a_cursor_locked_elsewhere_delays_its_own_batches_only(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.writer_cursor FOR UPDATE")
            delayed = [asyncio.create_task(writer.write(numbered(sequence))) for sequence in (2, 3, 4)]
            await writer.write(
                numbered(1, writer_id="other", samples=[])
            )  # In the same group or a later one.
            delayed.append(asyncio.create_task(writer.write(numbered(5))))
            await writer.write(numbered(2, writer_id="other", samples=[]))
            assert not any(task.done() for task in delayed)
        assert [result.duplicate for result in await asyncio.gather(*delayed)] == [False] * 4
        assert await last_sequence(connection) == 5


async def test_a_cursor_locked_for_long_fails_its_batches_and_consumes_nothing(
    database: TestDatabase,
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.writer_cursor FOR UPDATE")
            error = await refusal(writer, numbered(2))
            assert reason_of(error) == "DEPENDENCY_UNAVAILABLE"
            assert error.message == "writer 'w' is being committed by another process; retry"
        assert await last_sequence(connection) == 1
        assert not (await writer.write(numbered(2))).duplicate


async def test_a_repeated_request_id_gets_the_recorded_outcome(database: TestDatabase) -> None:
    async with (
        running_writer(database) as writer,
        running_writer(database) as other,
        admin(database) as connection,
    ):
        assert await writer.write(with_id("r1")) == WriteResult(b"stored r1 1", False)
        assert await writer.write(with_id("r1")) == WriteResult(b"stored r1 1", True)
        assert await other.write(with_id("r1")) == WriteResult(b"stored r1 1", True)
        assert reason_of(await refusal(other, with_id("r1", value=2))) == "REQUEST_ID_REUSED"
        assert not (await writer.write(with_id("r1", value=3, principal="user:bob"))).duplicate
        assert not (await writer.write(with_id("r1", value=4, tenant="acme"))).duplicate
        assert await stored_ints(connection) == [(1, 1, 1), (1, 3, 3), (1, 4, 4)]


async def test_request_ids_repeated_in_one_group_are_stored_once(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        answers = await asyncio.gather(
            writer.write(with_id("b")),
            writer.write(with_id("a")),
            writer.write(with_id("b")),
            writer.write(with_id("a", value=2)),
            return_exceptions=True,
        )
        assert list(answers[:3]) == [
            WriteResult(b"stored b 1", False),
            WriteResult(b"stored a 1", False),
            WriteResult(b"stored b 1", True),
        ]
        assert isinstance(answers[3], DomainError)
        assert reason_of(answers[3]) == "REQUEST_ID_REUSED"
        assert await stored_ints(connection) == [(1, 1, 1)]


async def test_two_processes_with_one_request_id_store_it_once(database: TestDatabase) -> None:
    async with (
        running_writer(database) as one,
        running_writer(database) as two,
        admin(database) as connection,
    ):
        for number in range(0, 40, 2):
            requests = [with_id(f"r{value}", value=value) for value in (number, number + 1)]
            answers = await asyncio.gather(
                *(one.write(sent) for sent in requests), *(two.write(sent) for sent in reversed(requests))
            )
            assert sorted(answer.duplicate for answer in answers) == [False, False, True, True]
        assert await stored_ints(connection) == [(1, number, number) for number in range(40)]


KEY: RequestKey = ("demo", "user:ada", "r")
FIRST, SECOND = Recorded(b"d", b"first"), Recorded(b"d", b"second")


def boundary() -> datetime:
    """Return the last boundary between two windows; the next one's partitions exist as well."""
    now = datetime.now(UTC)
    return now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)


async def claimed(database: TestDatabase, record: Recorded, now: datetime) -> dict[RequestKey, Recorded]:
    """Claim the id in a transaction of its own."""
    connection = await asyncpg.connect(database.url("twinmesh_ingest"))
    try:
        async with connection.transaction():
            return await claim(connection, {KEY: record}, now)
    finally:
        await connection.close()


@pytest.mark.parametrize("minutes", [0, 1, 14, 16, 29, 31, 59])
async def test_an_id_is_known_in_later_windows(database: TestDatabase, minutes: int) -> None:
    start = boundary()
    assert await claimed(database, FIRST, start) == {}
    assert await claimed(database, SECOND, start + timedelta(minutes=minutes)) == {KEY: FIRST}


async def test_claims_across_a_boundary_wait_for_each_other(database: TestDatabase) -> None:
    """The earlier transaction began before the boundary and has not committed when the later one comes."""
    end = boundary() + timedelta(minutes=15)
    async with admin(database) as watcher:
        early = await asyncpg.connect(database.url("twinmesh_ingest"))
        try:
            transaction = early.transaction()
            await transaction.start()
            assert await claim(early, {KEY: FIRST}, end - timedelta(seconds=1)) == {}
            late = asyncio.create_task(claimed(database, SECOND, end + timedelta(seconds=20)))
            await until_blocked(watcher)
            await transaction.commit()
            assert await late == {KEY: FIRST}
        finally:
            await early.close()


async def test_the_first_of_two_claims_around_the_overlap_stays_recorded(database: TestDatabase) -> None:
    """The earlier transaction inserts into both windows, but the later one, into one, was faster there."""
    start = boundary()
    slow_now, fast_now = start + timedelta(seconds=59), start + timedelta(seconds=61)
    assert await claimed(database, FIRST, fast_now) == {}
    assert await claimed(database, SECOND, slow_now) == {KEY: FIRST}
    async with admin(database) as connection:
        rows = await connection.fetch("SELECT outcome FROM telemetry.request_id")
    assert [row["outcome"] for row in rows] == [b"first", b"first"]
