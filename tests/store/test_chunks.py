"""Chunks in the store: each once, until their message ends, which it does once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit import db
from meshkit.errors import DomainError
from meshkit.testing.database import TestDatabase
from telemetry_store import chunks
from telemetry_store.chunks import ChunkStore, MessageKey
from telemetry_store.columns import Kind
from telemetry_store.commit import Commit
from telemetry_store.requests import (
    DeadLetter,
    MessageChunk,
    MessageEnd,
    MessageIdentity,
    PayloadFormat,
    RequestIdentity,
    WriteRequest,
)
from telemetry_store.writer import TelemetryWriter
from tests.store.writing import (
    T0,
    admin,
    columns,
    numbered,
    reason_of,
    request,
    running_writer,
    stored_ints,
    terminate,
    until_blocked,
)

KEY = ("demo", "gw", "m")
_names = count()


def chunk(
    index: int, payload: bytes = b"", *, total: int = 3, message_id: str = "m", **fields: Any
) -> MessageChunk:
    return MessageChunk(
        gateway_id=fields.pop("gateway_id", "gw"),
        message_id=message_id,
        index=index,
        total=total,
        is_array=fields.pop("is_array", False),
        all_or_nothing=fields.pop("all_or_nothing", None),
        arrival_us=T0 + index,
        payload=payload or b"chunk %d" % index,
    )


def carrying(*parts: MessageChunk, tenant: str = "demo") -> WriteRequest:
    return replace(request(tenant=tenant), chunks=parts, door="unary")


def ending(received: int = 3, *, letter: bool = False, content: str = "") -> WriteRequest:
    """Return the end of message m: a sample of its own, or a dead letter."""
    letters = (
        [DeadLetter(["gw"], "p", T0, "CHUNKS_MISSING", "why", b"what came", PayloadFormat.MESSAGE)]
        if letter
        else []
    )
    identity = None if letter else RequestIdentity(chunks.request_id("gw", "m"))
    samples = [] if letter else [columns(Kind.INT, [(1, 1, 1)])]
    return replace(
        request(identity, *samples, principal=chunks.PRINCIPAL, content=content),
        dead_letters=letters,
        end=MessageEnd("gw", "m", received),
    )


@asynccontextmanager
async def storing(database: TestDatabase, **kwargs: Any) -> AsyncIterator[tuple[TelemetryWriter, ChunkStore]]:
    async with (
        running_writer(database, **kwargs) as writer,
        db.pool(database.url("twinmesh_ingest"), application="chunks", max_size=2) as pool,
    ):
        yield writer, ChunkStore(pool=pool)


async def reasons(store: ChunkStore, *parts: MessageChunk) -> list[str]:
    return ["" if error is None else reason_of(error) for error in await store.check("demo", parts)]


async def whole(writer: TelemetryWriter) -> bytes:
    """Store message m, and return the digest under which it is remembered."""
    await writer.write(carrying(chunk(0), chunk(1), chunk(2)))
    digest = b"".join(chunks._digest(b"chunk %d" % index) for index in range(3))
    await writer.write(replace(ending(), digest=digest))
    return digest


async def left(database: TestDatabase) -> int:
    async with admin(database) as connection:
        found: int = await connection.fetchval(
            "SELECT (SELECT count(*) FROM telemetry.chunked_message)"
            " + (SELECT count(*) FROM telemetry.message_chunk)"
        )
        return found


async def test_a_chunk_is_there_once_its_batch_is_durable(database: TestDatabase) -> None:
    commits: list[Commit] = []
    async with storing(database, on_committed=commits.append) as (writer, store):
        await writer.write(carrying(chunk(2), chunk(0)))
        found = await store.read(KEY)
        assert found is not None
        assert (found.is_whole, found.missing, found.arrival_us) == (False, [1], T0 + 2)
        assert (found.principal, found.door) == ("user:ada", "unary")
        await writer.write(carrying(chunk(0), chunk(1)))
        found = await store.read(KEY)
        assert found is not None
        assert (found.is_whole, found.payload) == (True, b"chunk 0chunk 1chunk 2")
    assert [list(commit.whole) for commit in commits] == [[], [KEY]]


async def test_arrays_are_joined(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        parts = [b'[1,"a]["]', b"[]", b"[[2],{}]"]
        await writer.write(carrying(*(chunk(index, part, is_array=True) for index, part in enumerate(parts))))
        found = await store.read(KEY)
        assert found is not None
        assert found.payload == b'[1,"a][",[2],{}]'


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_however_chunks_come_a_message_is_whole_once(
    database: TestDatabase, data: st.DataObject
) -> None:
    """Any cut, order, duplicates, grouping and number of processes; several messages at once."""
    texts = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=3))
    parts: list[MessageChunk] = []
    names = [f"any-{next(_names)}" for _ in texts]
    for name, text in zip(names, texts, strict=True):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        ends = [0, *cuts, len(text)]
        pieces = [text[start:end] for start, end in pairwise(ends)]
        parts += [
            replace(chunk(index, total=len(pieces), message_id=name), payload=piece)
            for index, piece in enumerate(pieces)
        ]
    again = data.draw(st.lists(st.sampled_from(parts), max_size=6))
    order = data.draw(st.permutations([*parts, *again]))
    batches: list[list[MessageChunk]] = [[]]
    for part in order:
        if data.draw(st.booleans()):
            batches.append([])
        batches[-1].append(part)
    commits: list[Commit] = []
    async with (
        running_writer(database, on_committed=commits.append) as one,
        storing(database, on_committed=commits.append) as (other, store),
    ):
        writers = [data.draw(st.sampled_from([one, other])) for _ in batches]
        await asyncio.gather(
            *(writer.write(carrying(*batch)) for writer, batch in zip(writers, batches, strict=True))
        )
        assert sorted(key[2] for commit in commits for key in commit.whole) == sorted(names)
        for name, text in zip(names, texts, strict=True):
            found = await store.read(("demo", "gw", name))
            assert found is not None
            assert (found.is_whole, found.payload) == (True, text)
            end = replace(
                request(RequestIdentity(chunks.request_id("gw", name)), principal=chunks.PRINCIPAL),
                digest=found.digest,
                end=MessageEnd("gw", name, len(found.payloads)),
            )
            results = await asyncio.gather(one.write(end), other.write(end))
            assert sorted(result.duplicate for result in results) == [False, True]
        # What comes late begins nothing.
        await other.write(carrying(*order))
        assert [await store.read(("demo", "gw", name)) for name in names] == [None] * len(names)


async def test_what_disagrees_is_refused(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        await writer.write(carrying(chunk(0)))
        wrong = [
            chunk(0, b"other"),
            chunk(1, total=4),
            chunk(1, is_array=True),
            chunk(1, all_or_nothing=True),
            chunk(1, b"x" * chunks.MAX_MESSAGE_BYTES),
        ]
        for part in wrong:
            assert await reasons(store, part) == ["CHUNK_INVALID"]
            # Should it come between the check and the commit, its sender tries again.
            with pytest.raises(DomainError) as caught:
                await writer.write(carrying(chunk(2), part))
            assert reason_of(caught.value) == "DEPENDENCY_UNAVAILABLE"
        assert await reasons(store, chunk(1), chunk(1), chunk(1, b"other"), chunk(2)) == [
            "",
            "",
            "CHUNK_INVALID",
            "",
        ]
        found = await store.read(KEY)
        assert found is not None
        assert list(found.payloads) == [0]


async def test_of_two_that_disagree_in_one_group_the_first_is_kept(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        batches = [
            replace(numbered(1), chunks=[chunk(0)]),
            replace(numbered(2), chunks=[chunk(1), chunk(0, b"other")]),
            replace(numbered(1, writer_id="v"), chunks=[chunk(1)]),
        ]
        results = await asyncio.gather(*(writer.write(each) for each in batches), return_exceptions=True)
        assert [isinstance(result, BaseException) for result in results] == [False, True, False]
        found = await store.read(KEY)
        assert found is not None
        assert sorted(found.payloads) == [0, 1]
        # Its sequence was not used up.
        assert not (await writer.write(replace(batches[1], chunks=[chunk(2)]))).duplicate


async def test_chunks_of_a_batch_that_is_not_taken_are_not_kept(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        # A gap; and a message of a stream that is known.
        gap = replace(numbered(5), chunks=[chunk(0)])
        identity = MessageIdentity("s", [7], [], [], [b""], chunks=[0])
        known = replace(carrying(chunk(1, b"first", message_id="n")), identity=identity)
        again = replace(
            carrying(chunk(2, message_id="o"), chunk(1, message_id="p")),
            identity=replace(identity, sequences=[7, 8], outcomes=[b"", b""], chunks=[0, 1]),
        )
        results = await asyncio.gather(
            writer.write(gap), writer.write(carrying(chunk(0))), return_exceptions=True
        )
        assert isinstance(results[0], DomainError)
        assert not isinstance(results[1], BaseException)
        found = await store.read(KEY)
        assert found is not None  # By the batch that was taken.
        await writer.write(known)
        await writer.write(again)
        assert await store.read(("demo", "gw", "o")) is None
        assert await store.read(("demo", "gw", "p")) is not None


async def test_an_id_is_remembered_with_its_content(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        await whole(writer)
        assert await left(database) == 0
        assert await reasons(store, chunk(0), chunk(1, b"other"), chunk(2, total=4)) == [
            "",
            "CHUNK_INVALID",
            "CHUNK_INVALID",
        ]
        await writer.write(carrying(chunk(0), chunk(2)))
        assert await left(database) == 0
        assert await reasons(store, chunk(0, b"other", gateway_id="gw2")) == [""]


@pytest.mark.parametrize("letter", [False, True])
async def test_two_processes_end_a_message_once(database: TestDatabase, letter: bool) -> None:
    async with storing(database) as (one, _), storing(database) as (other, _), admin(database) as held:
        parts = (chunk(0), chunk(1)) if letter else (chunk(0), chunk(1), chunk(2))
        await one.write(carrying(*parts))
        end = ending(len(parts), letter=letter)
        async with held.transaction():
            await held.execute("LOCK TABLE telemetry.ingest_commit IN EXCLUSIVE MODE")
            first = asyncio.create_task(one.write(end))
            await until_blocked(held, 1)
            second = asyncio.create_task(other.write(end))
            await until_blocked(held, 2)
        assert [result.duplicate for result in await asyncio.gather(first, second)] == [False, True]
        assert (await one.write(end)).duplicate
        assert await held.fetchval("SELECT count(*) FROM telemetry.dead_letter") == int(letter)
        assert await stored_ints(held) == ([] if letter else [(1, 1, 1)])
    assert await left(database) == 0


async def test_a_message_that_ends_twice_in_one_group_ends_once(database: TestDatabase) -> None:
    async with storing(database) as (writer, _), admin(database) as connection:
        await writer.write(carrying(chunk(0)))
        end = ending(1, letter=True)
        results = await asyncio.gather(*(writer.write(end) for _ in range(3)))
        assert [result.duplicate for result in results] == [False, True, True]
        assert await connection.fetchval("SELECT count(*) FROM telemetry.dead_letter") == 1


async def test_an_end_that_is_cut_off_leaves_all_of_it(database: TestDatabase) -> None:
    async with storing(database) as (writer, store), admin(database) as held:
        await writer.write(carrying(chunk(0), chunk(1), chunk(2)))
        async with held.transaction():
            await held.execute("LOCK TABLE telemetry.ingest_commit IN EXCLUSIVE MODE")
            cut = asyncio.create_task(writer.write(ending()))
            await terminate(database, await until_blocked(held, 1))
            with pytest.raises(DomainError):
                await cut
        found = await store.read(KEY)
        assert found is not None
        assert found.is_whole
        assert await stored_ints(held) == []
        assert not (await writer.write(ending())).duplicate
        assert await stored_ints(held) == [(1, 1, 1)]
    assert await left(database) == 0


async def test_a_chunk_that_comes_at_the_last_moment_is_kept(database: TestDatabase) -> None:
    async with storing(database) as (writer, store):
        await writer.write(carrying(chunk(0), chunk(1)))
        # In the group of the end, before it or after it, and in one of its own.
        for parts, end_first in (([chunk(2, total=3)], True), ([chunk(2)], False)):
            both = [ending(2, letter=True), carrying(*parts)]
            results = await asyncio.gather(
                *(writer.write(each) for each in (both if end_first else both[::-1]))
            )
            expired = results[0 if end_first else 1]
            assert expired.duplicate
        found = await store.read(KEY)
        assert found is not None
        assert found.is_whole
        assert (await writer.write(ending(2, letter=True))).duplicate
        async with admin(database) as connection:
            assert await connection.fetchval("SELECT count(*) FROM telemetry.dead_letter") == 0


async def test_a_value_that_postgresql_refuses_ends_the_message_as_a_dead_letter(
    database: TestDatabase,
) -> None:
    async with storing(database) as (writer, _), admin(database) as connection:
        await writer.write(carrying(chunk(0)))
        bad = replace(
            ending(1),
            samples=[columns(Kind.STRING, [(1, 1, "a\0b")])],
            refused_dead_letters=lambda: [
                DeadLetter(["gw"], "p", T0, "VALUE_REFUSED", "why", b"it", PayloadFormat.MESSAGE)
            ],
        )
        await writer.write(bad)
        rows = await connection.fetch("SELECT reason FROM telemetry.dead_letter")
        assert [row["reason"] for row in rows] == ["VALUE_REFUSED"]
    assert await left(database) == 0


def due(names: Sequence[str]) -> list[MessageKey]:
    return [("demo", "gw", name) for name in names]


async def test_what_is_due_is_found(database: TestDatabase) -> None:
    async with storing(database) as (writer, store), admin(database) as connection:
        for name, received in (("young", 1), ("old", 2), ("whole", 3)):
            await writer.write(carrying(*(chunk(index, message_id=name) for index in range(received))))
        assert await store.due(whole_for_s=60, expire_s=60, most=9) == []
        assert await store.due(whole_for_s=0, expire_s=60, most=9) == due(["whole"])
        await connection.execute(
            "UPDATE telemetry.chunked_message SET first_received_at = now() - interval '61 s'"
            " WHERE message_id = 'old'"
        )
        assert await store.due(whole_for_s=60, expire_s=60, most=9) == due(["old"])
        assert await store.due(whole_for_s=0, expire_s=0, most=2) == due(["old", "young"])


async def test_storage_is_bounded_by_gateway_and_tenant(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MAX_OPEN_MESSAGES", 2)
    monkeypatch.setattr(chunks, "MAX_TENANT_BYTES", 2_000)
    async with storing(database) as (writer, store):
        await writer.write(carrying(chunk(0, message_id="a"), chunk(0, message_id="b")))
        assert await reasons(store, chunk(0, message_id="c"), chunk(1, message_id="a")) == [
            "CHUNK_STORAGE_FULL",
            "",
        ]
        other = chunk(0, b"x" * 1_900, gateway_id="gw2")
        assert await reasons(store, other) == ["CHUNK_STORAGE_FULL"]
        assert await store.check("acme", [other]) == [None]
        for part in (chunk(0, message_id="c"), other):
            with pytest.raises(DomainError) as caught:
                await writer.write(carrying(part))
            assert reason_of(caught.value) == "CHUNK_STORAGE_FULL"
