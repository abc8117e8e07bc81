"""What goes wrong in a group commit, and what callers are told then."""

import asyncio
import os
import signal
from collections.abc import Sequence

import asyncpg
import pytest

from meshkit.errors import DomainError, Unavailable
from meshkit.testing.database import TestDatabase
from telemetry_store.batch import Batch, Prepared
from telemetry_store.columns import MICROS_PER_DAY, Kind, KindColumns
from telemetry_store.commit import Stored
from telemetry_store.committer import Committer
from telemetry_store.instances import LOCK_CLASS
from telemetry_store.requests import RequestIdentity, WriteResult
from telemetry_store.writer import TelemetryWriter
from tests.store.broken_line import Break, BrokenLine
from tests.store.writing import (
    T0,
    admin,
    columns,
    commit_numbers,
    numbered,
    reason_of,
    request,
    running_writer,
    stored_ints,
    terminate,
    until_blocked,
)

NUL = columns(Kind.STRING, [(9, 1, "no\0good")])  # SQLSTATE 22021
SURROGATE = columns(Kind.STRING, [(9, 1, "no\ud800good")])  # cannot be sent at all


def one(series: int) -> KindColumns:
    return columns(Kind.INT, [(series, 1, series)])


async def test_a_backend_that_stood_still_is_no_hindrance_later(database: TestDatabase) -> None:
    url = database.url("twinmesh_ingest")
    async with (
        admin(database) as connection,
        asyncpg.create_pool(
            url, command_timeout=2.0, server_settings={"application_name": "stalling"}
        ) as pool,
        TelemetryWriter(pool=pool) as writer,
    ):
        await writer.write(request(RequestIdentity("before"), one(1)))
        # Asked by the same role, which may see its own; the other one holds the instance's lock.
        committing = await pool.fetchval(
            """
            SELECT pid FROM pg_stat_activity
            WHERE application_name = 'stalling' AND query LIKE 'COMMIT%'
              AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')
            """
        )
        os.kill(committing, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await writer.write(request(RequestIdentity("meanwhile"), one(2)))
        finally:
            os.kill(committing, signal.SIGCONT)
        async with asyncio.timeout(30):
            while True:
                try:
                    await writer.write(request(RequestIdentity("after"), one(3)))
                except Unavailable:
                    continue
                break
        assert await stored_ints(connection) == [(1, 1, 1), (3, 1, 3)]


@pytest.mark.parametrize("bad", [NUL, SURROGATE], ids=["nul", "surrogate"])
async def test_bad_content_is_found_and_its_refusal_recorded_in_sequence(
    database: TestDatabase, bad: KindColumns
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        results = await asyncio.gather(
            *(writer.write(request(RequestIdentity(f"r{number}"), one(number))) for number in range(5)),
            writer.write(numbered(1)),
            writer.write(numbered(2, samples=[one(7), bad])),
            writer.write(numbered(3)),
        )
        assert [result.outcome for result in results] == [
            *[b"stored content"] * 5,
            b"stored w 1",
            b"refused w 2",
            b"stored w 3",
        ]
        assert not any(result.duplicate for result in results)
        # Nothing of the bad batch, everything of the others.
        assert await stored_ints(connection) == [
            (0, 1, 0), (1, 1, 1), (1, 1, 1), (1, 3, 3), (2, 1, 2), (3, 1, 3), (4, 1, 4)
        ]  # fmt: skip
        again = await writer.write(numbered(2, samples=[one(7), bad]))
        assert again == WriteResult(b"refused w 2", duplicate=True)
        commits = await commit_numbers(connection)
        assert commits == [(1, number) for number in range(1, len(commits) + 1)]


async def test_the_search_for_bad_content_keeps_the_order_of_a_cursor_unlocked_meanwhile(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        locking = connection.transaction()
        await locking.start()
        await connection.execute("SELECT FROM telemetry.writer_cursor FOR UPDATE")
        commit = Committer.commit
        committed: list[int] = []

        async def commit_and_unlock(
            self: Committer, batches: Sequence[Batch], prepared: Prepared | None
        ) -> Stored:
            stored = await commit(self, batches, prepared)
            if not committed:  # The first half, which meets the lock.
                await locking.rollback()
            committed.append(len(batches))
            return stored

        monkeypatch.setattr(Committer, "commit", commit_and_unlock)
        results = await asyncio.gather(
            writer.write(numbered(2)),
            writer.write(request(RequestIdentity("bad"), NUL)),
            writer.write(numbered(3)),
        )
        assert [result.outcome for result in results] == [b"stored w 2", b"refused content", b"stored w 3"]
        assert committed[0] == 1


async def test_the_sender_of_bad_content_then_commits_alone(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        assert (await writer.write(numbered(1, samples=[NUL]))).outcome == b"refused w 1"
        before = len(await commit_numbers(connection))
        await asyncio.gather(
            writer.write(numbered(2)),
            writer.write(numbered(1, writer_id="other")),
            writer.write(numbered(3)),
            writer.write(request(None, one(5))),
        )
        assert len(await commit_numbers(connection)) == before + 2


async def test_a_bad_identity_is_refused_alone(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        answers = await asyncio.gather(
            writer.write(request(RequestIdentity("fine"), one(1))),
            writer.write(request(RequestIdentity("bad\0id"), one(2))),
            writer.write(numbered(1, writer_id="bad\0writer")),
            writer.write(numbered(1)),
            return_exceptions=True,
        )
        assert answers[0] == WriteResult(b"stored content", False)
        assert answers[3] == WriteResult(b"stored w 1", False)
        for answer in answers[1:3]:
            assert isinstance(answer, DomainError)
            assert reason_of(answer) == "VALUE_REFUSED"
        assert await stored_ints(connection) == [(1, 1, 1), (1, 1, 1)]


async def test_a_missing_partition_is_transient_and_consumes_nothing(database: TestDatabase) -> None:
    old_day = T0 // MICROS_PER_DAY - 100
    old = columns(Kind.INT, [(1, old_day * MICROS_PER_DAY - T0, 1)])
    async with running_writer(database) as writer, admin(database) as connection:
        with pytest.raises(DomainError) as caught:
            await writer.write(numbered(1, samples=[old]))
        assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
        await connection.execute("SELECT telemetry.make_segment_day(date '1970-01-01' + $1::int)", old_day)
        assert await writer.write(numbered(1, samples=[old])) == WriteResult(b"stored w 1", False)


async def test_a_backend_killed_in_a_commit_loses_nothing(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        async with connection.transaction():
            await connection.execute("SELECT FROM telemetry.ingest_instance FOR UPDATE")
            caught = asyncio.create_task(writer.write(numbered(2)))
            await terminate(database, await until_blocked(connection))
            with pytest.raises(DomainError) as error:
                await caught
        assert reason_of(error.value) == "DEPENDENCY_UNAVAILABLE"
        assert await writer.write(numbered(2)) == WriteResult(b"stored w 2", False)
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2)]
        assert await commit_numbers(connection) == [(1, 1), (1, 2)]


async def test_a_lost_lock_means_a_new_instance(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        pid = await connection.fetchval(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = $1", LOCK_CLASS
        )
        await terminate(database, [pid])
        # The loss is noticed once the socket's end is read.
        for sequence in range(2, 200):
            assert not (await writer.write(numbered(sequence))).duplicate
            if (await commit_numbers(connection))[-1][0] == 2:
                break
        assert (await commit_numbers(connection))[-1][0] == 2


async def test_a_closed_instance_commits_no_more(database: TestDatabase) -> None:
    async with running_writer(database) as writer, admin(database) as connection:
        await writer.write(numbered(1))
        async with connection.transaction():
            # As maintenance does: whoever commits at this moment waits, and then sees it.
            await connection.execute("UPDATE telemetry.ingest_instance SET closed = true")
            zombie = asyncio.create_task(writer.write(numbered(2)))
            await until_blocked(connection)
        assert await zombie == WriteResult(b"stored w 2", False)
        assert await commit_numbers(connection) == [(1, 1), (2, 1)]
        assert (
            await connection.fetchval(
                "SELECT last_commit_no FROM telemetry.ingest_instance WHERE instance = 1"
            )
            == 1
        )


@pytest.mark.parametrize(("lost", "duplicate"), [(Break.COMMIT, False), (Break.ANSWER, True)])
async def test_an_unknown_outcome_of_commit_is_found_out(
    database: TestDatabase, lost: Break, duplicate: bool
) -> None:
    async with (
        BrokenLine(database.url("twinmesh_ingest")).open() as line,
        running_writer(database, url=line.url) as writer,
        admin(database) as connection,
    ):
        await writer.write(numbered(1))
        line.breaks = lost
        if duplicate:
            # It was committed, and the caller is told so as if nothing had happened.
            assert await writer.write(numbered(2)) == WriteResult(b"stored w 2", False)
        else:
            with pytest.raises(DomainError) as caught:
                await writer.write(numbered(2))
            assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
        assert line.breaks is Break.NOTHING
        assert (await writer.write(numbered(2))).duplicate is duplicate
        await writer.write(numbered(3))
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2), (1, 3, 3)]
        assert await commit_numbers(connection) == [(1, 1), (1, 2), (1, 3)]


async def test_a_database_that_is_away_comes_back(database: TestDatabase) -> None:
    async with (
        BrokenLine(database.url("twinmesh_ingest")).open() as line,
        running_writer(database, url=line.url) as writer,
        admin(database) as connection,
    ):
        await writer.write(numbered(1))
        line.down = True
        line.cut()
        for _ in range(3):
            with pytest.raises(DomainError) as caught:
                await writer.write(numbered(2))
            assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
        with pytest.raises(DomainError) as caught:
            await writer.open_writer(tenant="demo", principal="user:ada", writer_id="w")
        assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
        line.down = False
        assert await writer.write(numbered(2)) == WriteResult(b"stored w 2", False)
        assert await stored_ints(connection) == [(1, 1, 1), (1, 2, 2)]


async def test_a_defect_fails_its_group_and_nothing_else(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as writer:
        with monkeypatch.context() as patch:
            patch.setattr("telemetry_store.writer.prepare", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await writer.write(numbered(1))
        assert await writer.write(numbered(1)) == WriteResult(b"stored w 1", False)
