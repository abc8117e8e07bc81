"""The trail of a stream: definitions come once, whatever becomes of the batches that they come with."""

from collections.abc import Sequence

import numpy as np

from ingest_svc.columns import SentColumns
from ingest_svc.raw_trail import BatchTrail, RawTrail, StreamTrail
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from telemetry_store.columns import Kind
from telemetry_store.requests import RawFormat
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

NOW = 1_700_000_000_000_000


class World:
    """A stream's series, of device `d<alias>` each, and its trail."""

    def __init__(self) -> None:
        self.keeps = True
        self.table = SeriesTable()
        self.trail = StreamTrail(trail=RawTrail(keeps=lambda _: self.keeps), tenant="acme", series=self.table)

    def define(self, *aliases: int) -> None:
        self.table.define([(alias, SeriesDefinition(f"d{alias}", "x", Kind.INT, "")) for alias in aliases])

    async def batch(self, *aliases: int) -> BatchTrail:
        columns = SentColumns(
            np.array(aliases, np.uint32),
            np.ones(len(aliases), np.int64),
            np.zeros(len(aliases), np.int64),
            {Kind.INT: np.zeros(len(aliases), np.int64)},
        )
        batch = ingest_pb2.Batch(sequence=1, columns=ingest_pb2.Columns(series=aliases))
        return await self.trail.of_batch(batch, columns, NOW)


def defined(trail: BatchTrail) -> list[int]:
    """Return the aliases that come with a batch."""
    return [
        each.alias
        for message in trail.messages
        if message.format is RawFormat.SERIES_DEFS
        for each in ingest_pb2.SeriesDefs.FromString(message.payload).defs
    ]


def devices(trail: BatchTrail) -> Sequence[str]:
    return trail.messages[-1].devices.device_ids


async def test_definitions_come_with_the_first_batch_and_not_again() -> None:
    world = World()
    world.define(0, 3)
    first = await world.batch(0)
    world.trail.sent(first)
    assert defined(first) == [0, 3]
    assert defined(await world.batch(3)) == []
    world.define(0, 3, 700)
    assert defined(await world.batch(0)) == [700]


async def test_definitions_that_were_not_let_in_or_not_committed_come_again() -> None:
    world = World()
    world.define(0)
    assert defined(await world.batch(0)) == [0]
    first = await world.batch(0)
    assert defined(first) == [0]
    world.trail.sent(first)
    world.define(500)
    second = await world.batch(0)
    assert defined(second) == [500]
    world.trail.sent(second)
    world.trail.lost(first)
    third = await world.batch(0)
    assert defined(third) == [0]
    world.trail.sent(third)
    world.trail.lost(second)
    assert defined(await world.batch(0)) == [500]


async def test_more_definitions_than_a_message_may_have_are_several() -> None:
    world = World()
    world.define(*range(25_000))
    trail = await world.batch(1)
    sizes = [len(ingest_pb2.SeriesDefs.FromString(each.payload).defs) for each in trail.messages[:-1]]
    assert sizes == [10_000, 10_000, 5_000]
    assert defined(trail) == list(range(25_000))
    assert len(trail.messages[0].devices.device_ids) == 10_000


async def test_a_tenant_that_begins_to_keep_messages_gets_what_was_defined_before() -> None:
    world = World()
    world.keeps = False
    world.define(0)
    assert (await world.batch(0)).messages == ()
    world.keeps = True
    assert defined(await world.batch(0)) == [0]


async def test_devices_are_those_behind_the_aliases_of_each_batch() -> None:
    world = World()
    world.define(*range(20))
    for aliases in ([1, 2], [1, 2], [2, 1, 1], *([alias] for alias in range(20)), [1, 2], []):
        expected = tuple(sorted({f"d{alias}" for alias in aliases}))
        assert devices(await world.batch(*aliases)) == expected


async def test_devices_of_readings_are_those_they_name() -> None:
    world = World()
    trail = await world.trail.of_batch(
        ingest_pb2.Batch(sequence=1),
        [Reading("b", None, ()), Reading("a", None, ()), Reading("b", 1, ())],
        NOW,
    )
    assert devices(trail) == ("a", "b")
