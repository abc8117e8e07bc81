"""A load sends every batch once and in order, whatever its stream meets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from meshkit.errors import Unauthenticated
from meshkit.status import to_status
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1 import value_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli import load_stream
from twinmesh_cli.load_stream import LoadStream
from twinmesh_cli.outgoing import Outgoing

BATCHES = 12
# What the server does instead of acknowledging a batch when it first comes.
THROTTLE, BREAK, GO_AWAY, LOSE_ACK, REFUSE = "throttle", "break", "go away", "lose the ack", "refuse"
EXPIRE = "expire"


@dataclass
class Server(ingest_grpc.IngestServiceServicer):
    """Keeps a writer's cursor as ingest_svc does, and fails where it is told to.

    Attributes:
        faults: by sequence, each met once.
        most_in_flight: that it grants.
        committed: sequences and backfills, in order.
        opened: what came with each Open: session, resume, and what was defined.
    """

    faults: dict[int, str] = field(default_factory=dict)
    most_in_flight: int = 3
    committed: list[tuple[int, str]] = field(default_factory=list)
    opened: list[tuple[str, bool, int]] = field(default_factory=list)

    async def StreamTelemetry(
        self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
    ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
        first = await anext(request_iterator)
        self.opened.append((first.open.session_id, first.open.resume, 0))
        last = len(self.committed)
        yield _response(
            opened=ingest_pb2.Opened(
                last_committed_sequence=last,
                max_inflight_batches=self.most_in_flight,
                max_inflight_bytes=1 << 20,
                outcomes_kept=128,
            )
        )
        awaited = 0
        async for request in request_iterator:
            if request.HasField("series_defs"):
                session, resume, defined = self.opened[-1]
                self.opened[-1] = session, resume, defined + len(request.series_defs.defs)
                continue
            if request.HasField("close"):
                return
            sequence = request.batch.sequence
            if awaited and sequence != awaited:
                continue  # It was in flight behind a Throttle.
            awaited = 0
            fault = self.faults.pop(sequence, "")
            if fault == THROTTLE:
                awaited = sequence
                yield _response(throttle=ingest_pb2.Throttle(first_refused_sequence=sequence))
                continue
            if fault == BREAK:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if fault == EXPIRE:
                await expire(context)
            if sequence > len(self.committed):
                assert sequence == len(self.committed) + 1, "a gap"
                self.committed.append((sequence, request.batch.backfill_id))
            if fault == LOSE_ACK:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone with the ack")
            ack = ingest_pb2.Ack(durable_through=sequence)
            if fault == REFUSE:
                ack.results.add(sequence=sequence, refused_samples=1, message="no")
            yield _response(ack=ack)
            if fault == GO_AWAY:
                yield _response(go_away=ingest_pb2.GoAway())


async def expire(context: Any) -> None:
    """End a call whose access token has ended."""
    expired = Unauthenticated("it has expired", reason=ErrorReason.ERROR_REASON_TOKEN_INVALID)
    await context.abort_with_status(rpc_status.to_status(to_status(expired)))


def _response(**message: Any) -> ingest_pb2.StreamTelemetryResponse:
    return ingest_pb2.StreamTelemetryResponse(**message)


class Recorded:
    """A recording of numbered batches in two spans."""

    samples = BATCHES
    ranges: Any = None
    reported: Any = None
    definitions: Sequence[ingest_pb2.SeriesDef] = [
        ingest_pb2.SeriesDef(alias=0, device_id="a", metric="b", kind=value_pb2.VALUE_KIND_INT)
    ]

    def batches(self, after: int) -> Iterator[Outgoing]:
        for sequence in range(1, BATCHES + 1):
            content = ingest_pb2.Batch(traceparent="x" * sequence).SerializeToString()
            yield Outgoing(sequence, sequence % 2, 1, content if sequence > after else b"")


class Session:
    """What a load needs of a session."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def credential(self) -> str:
        return "token"


Load = Callable[[Server], Awaitable[tuple[list[int], list[int], dict[int, int]]]]


@pytest.fixture
async def load(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Load]:
    """Run a load against a server; returns what was skipped, what became durable, and what was refused."""
    monkeypatch.setattr(load_stream, "_RETRY_S", 0.0)
    async with asyncio.timeout(30):
        server = grpc.aio.server()

        async def run(servicer: Server) -> tuple[list[int], list[int], dict[int, int]]:
            ingest_grpc.add_IngestServiceServicer_to_server(servicer, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            skipped: list[int] = []
            durable: list[int] = []
            refused: dict[int, int] = {}

            def on_durable(outgoing: Outgoing, result: ingest_pb2.BatchResult | None) -> None:
                durable.append(outgoing.sequence)
                if result is not None:
                    refused[outgoing.sequence] = result.refused_samples

            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await LoadStream(
                    session=Session(channel),  # type: ignore[arg-type] # As much of one as is needed.
                    writer_id="load:test",
                    recording=Recorded(),
                    backfills={0: "even", 1: "odd"},
                    on_durable=on_durable,
                ).run(lambda outgoing: skipped.append(outgoing.sequence))
            return skipped, durable, refused

        yield run
        await server.stop(None)


EVERYTHING = list(range(1, BATCHES + 1))
COMMITTED = [(sequence, "odd" if sequence % 2 else "even") for sequence in EVERYTHING]


@pytest.mark.parametrize("most_in_flight", [1, 3, 100])
@pytest.mark.parametrize(
    "faults",
    [
        {},
        {4: THROTTLE},
        {4: BREAK},
        {4: LOSE_ACK},
        {4: GO_AWAY},
        {4: EXPIRE},
        {1: BREAK, 2: THROTTLE, 3: LOSE_ACK, 4: GO_AWAY, 5: THROTTLE, 12: LOSE_ACK},
        {12: GO_AWAY},
    ],
)
async def test_every_batch_is_committed_once(load: Load, faults: dict[int, str], most_in_flight: int) -> None:
    server = Server(dict(faults), most_in_flight)
    assert await load(server) == ([], EVERYTHING, {})
    assert server.committed == COMMITTED
    assert not server.faults
    sessions = {session for session, _, _ in server.opened}
    assert len(sessions) == 1
    assert [resume for _, resume, _ in server.opened] == [False, *[True] * (len(server.opened) - 1)]
    assert {defined for _, _, defined in server.opened} == {1}


async def test_what_the_server_has_is_skipped(load: Load) -> None:
    server = Server(committed=COMMITTED[:5])
    assert await load(server) == (EVERYTHING[:5], EVERYTHING[5:], {})
    assert server.committed == COMMITTED


async def test_a_whole_load_is_skipped(load: Load) -> None:
    server = Server(committed=list(COMMITTED))
    assert await load(server) == (EVERYTHING, [], {})


async def test_refusals_are_told_also_when_their_ack_was_lost(load: Load) -> None:
    server = Server({3: REFUSE, 6: REFUSE, 7: BREAK})
    assert await load(server) == ([], EVERYTHING, {3: 1, 6: 1})


async def test_a_refused_stream_ends_the_load(load: Load) -> None:
    class Refusing(Server):
        async def StreamTelemetry(
            self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
        ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "fenced")
            yield ingest_pb2.StreamTelemetryResponse()

    with pytest.raises(grpc.aio.AioRpcError, match="fenced"):
        await load(Refusing())


async def test_a_token_that_is_refused_at_once_ends_the_load(load: Load) -> None:
    class Refusing(Server):
        async def StreamTelemetry(
            self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
        ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
            self.opened.append(("", False, 0))
            await expire(context)
            yield ingest_pb2.StreamTelemetryResponse()

    server = Refusing()
    with pytest.raises(grpc.aio.AioRpcError, match="it has expired"):
        await load(server)
    assert len(server.opened) == 1


async def test_a_server_that_stays_away_is_given_up(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_stream, "_RETRIES", 3)

    class Away(Server):
        async def StreamTelemetry(
            self, request_iterator: AsyncIterator[ingest_pb2.StreamTelemetryRequest], context: Any
        ) -> AsyncIterator[ingest_pb2.StreamTelemetryResponse]:
            self.opened.append(("", False, 0))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            yield ingest_pb2.StreamTelemetryResponse()

    server = Away()
    with pytest.raises(grpc.aio.AioRpcError, match="away"):
        await load(server)
    assert len(server.opened) == 4
