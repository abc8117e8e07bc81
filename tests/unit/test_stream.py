"""One gateway stream between a client and a writer that do what a test says, on a clock that it moves."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ingest_svc.applied import Applied
from ingest_svc.budget import Budgets
from ingest_svc.open_streams import OpenStreams
from ingest_svc.raw_trail import RawTrail
from ingest_svc.servicer import IngestServicer
from ingest_svc.stream import TelemetryStream
from ingest_svc.twin_frontiers import LISTENED_TICKS, TwinFrontiers
from meshkit.errors import DomainError, InvalidArgument, Unauthenticated, Unavailable, dependency_unavailable
from meshkit.identity import Principal, PrincipalKind
from meshkit.open_calls import OpenCall, bind_call
from meshkit.shares import Shares
from telemetry_store.commit_numbers import CommitNumbers, Coverage
from telemetry_store.frontier_report import FrontierReport
from telemetry_store.requests import OpenedCursor, WriteRequest, WriteResult
from tests.rpc.ingest.neighbours import until
from tests.unit.ingest_world import NOW, World, unlimited
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE

_TRACE = "0af7651916cd43dd8448eb211c80319c"


class HeldWriter:
    """Takes batches, and answers when a test says so."""

    def __init__(self) -> None:
        self.submitted: list[tuple[WriteRequest, asyncio.Future[WriteResult]]] = []

    async def open_writer(
        self, *, tenant: str, principal: str, writer_id: str, session_id: str, resume: bool
    ) -> OpenedCursor:
        return OpenedCursor(epoch=1, last_sequence=0)

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        written = asyncio.get_running_loop().create_future()
        self.submitted.append((request, written))
        return written

    def commits(self, place: int = 0) -> None:
        request, written = self.submitted[place]
        written.set_result(
            WriteResult(request.outcome, duplicate=False, commit=CommitNumbers(7, place + 1, place + 1))
        )

    def fails(self, place: int = 0) -> None:
        self.submitted[place][1].set_exception(dependency_unavailable("postgresql"))


class NoCredentials:
    """Is not asked."""

    async def verify(self, credential: str, *, address: str) -> Principal:
        raise NotImplementedError


async def not_asked() -> Mapping[int, int]:
    """Do not say what was committed: of what was just written everybody knows it."""
    raise NotImplementedError


class Site:
    """A process with one stream, and the stream's client."""

    def __init__(self, budgets: Budgets | None = None) -> None:
        self.world = World()
        self.clock = self.world.clock
        self.writer = HeldWriter()
        self.twins = TwinFrontiers()
        self.budgets = budgets or Budgets()
        self.streams = OpenStreams(clock=self.clock, max_lifetime_s=3600)
        principal = Principal("acme", "hub", PrincipalKind.API_KEY, frozenset({"telemetry:write"}))
        self.call = OpenCall(principal, address="", cut_off=self.cut_off, renewed=lambda _: None)
        self.stream = self.new_stream(self.call)
        self.requests: asyncio.Queue[ingest_pb2.StreamTelemetryRequest] = asyncio.Queue()
        self.keeps_raw = False
        self.reading = False
        self.cut_off_by: DomainError | None = None
        self.responses = self.stream.responses(self.sent())

    def new_stream(self, call: OpenCall) -> TelemetryStream:
        return TelemetryStream(
            call=call,
            intake=self.world.intake,
            limiter=unlimited(),
            writer=self.writer,
            raw=RawTrail(keeps=lambda _: self.keeps_raw),
            applied=Applied(frontiers=self.twins, last_commits=not_asked),
            credentials=NoCredentials(),
            streams=self.streams,
            budgets=self.budgets,
            clock=self.clock,
        )

    async def sent(self) -> AsyncIterator[ingest_pb2.StreamTelemetryRequest]:
        self.reading = True
        try:
            while True:
                yield await self.requests.get()
        finally:
            self.reading = False

    def cut_off(self, why: DomainError) -> None:
        self.cut_off_by = why
        self.stream.leave()  # As the transport does when the call is done.

    def send(self, **message: Any) -> None:
        self.requests.put_nowait(ingest_pb2.StreamTelemetryRequest(**message))

    def define(self, count: int) -> None:
        self.send(
            series_defs=ingest_pb2.SeriesDefs(
                defs=[
                    ingest_pb2.SeriesDef(
                        alias=alias, device_id=f"d-{alias}", metric="x", kind=VALUE_KIND_DOUBLE
                    )
                    for alias in range(count)
                ]
            )
        )

    async def read(self) -> ingest_pb2.StreamTelemetryResponse:
        return await anext(self.responses)

    async def open(self, **fields: Any) -> None:
        self.send(open=ingest_pb2.Open(writer_id="gw", **fields))
        assert (await self.read()).HasField("opened")

    async def has_taken(self, batches: int) -> None:
        await until(lambda: len(self.writer.submitted) >= batches)

    def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.stream.act(self.clock.now_us())

    async def rest(self) -> list[ingest_pb2.StreamTelemetryResponse]:
        return [response async for response in self.responses]

    async def fails(self) -> DomainError:
        with pytest.raises(DomainError) as caught:
            await self.rest()
        return caught.value

    async def is_left(self) -> bool:
        """Say whether nothing of the stream is left, once cancelled tasks had their turn."""
        await asyncio.sleep(0)
        used = self.budgets.definitions.used + self.budgets.inflight_bytes.used
        return not self.reading and len(self.streams) == 0 and used == 0


@asynccontextmanager
async def opened(budgets: Budgets | None = None) -> AsyncIterator[Site]:
    site = Site(budgets)
    try:
        await site.open()
        yield site
    finally:
        site.stream.leave()


async def test_a_stream_is_opened_within_10_seconds() -> None:
    site = Site()
    ending = asyncio.create_task(site.fails())
    await asyncio.sleep(0)
    site.after(9.9)
    assert site.stream.due_us == NOW + 10_000_000
    site.after(0.2)
    assert (await ending).reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    assert await site.is_left()


async def test_applied_follows_durable_and_leaves_nothing() -> None:
    site = Site()
    for _ in range(LISTENED_TICKS):
        site.twins.tick()
    await site.open(ack_level=ingest_pb2.ACK_LEVEL_APPLIED)
    for sequence in (1, 2):
        site.send(batch=ingest_pb2.Batch(sequence=sequence))
        reading = asyncio.create_task(site.read())
        await site.has_taken(sequence)
        site.writer.commits(sequence - 1)
        ack = (await reading).ack
        assert (ack.durable_through, ack.applied_through) == (sequence, sequence - 1)
        site.twins.take(FrontierReport("twin", Coverage(0, {7: sequence})))
        ack = (await site.read()).ack
        assert (ack.durable_through, ack.applied_through) == (sequence, sequence)
    tasks = asyncio.all_tasks()
    site.stream.leave()
    assert await site.is_left()
    assert [task for task in tasks if task.get_name() == "applied-progress" and not task.done()] == []


async def test_definitions_beyond_the_process_budget_end_the_stream() -> None:
    budgets = Budgets(definitions=Shares(200))
    async with opened(budgets) as one, opened(budgets) as other:
        one.define(60)
        other.define(60)
        failure = await other.fails()
        assert failure.reason == ErrorReason.ERROR_REASON_INGEST_BUSY
        assert failure.metadata == {"limit_name": "definitions", "limit": "100", "used": "60"}
        assert failure.retry_after_s == 5
        one.stream.leave()
        assert budgets.definitions.used == 0
        async with opened(budgets) as third:
            third.define(100)
            third.send(batch=ingest_pb2.Batch(sequence=1))
            await third.has_taken(1)
            assert budgets.definitions.used == 100


async def test_bytes_beyond_the_process_budget_are_thrown_back() -> None:
    size = ingest_pb2.Batch(sequence=1, traceparent="x" * 60).ByteSize()
    budgets = Budgets(inflight_bytes=Shares(2 * size))
    async with opened(budgets) as one, opened(budgets) as other:
        for site in (one, other):
            site.send(batch=ingest_pb2.Batch(sequence=1, traceparent="x" * 60))
            await one.has_taken(1)
        throttle = (await other.read()).throttle
        assert throttle.reason == ErrorReason.ERROR_REASON_INGEST_BUSY
        assert (throttle.limit_name, throttle.limit, throttle.used) == ("process_inflight_bytes", size, size)
        assert (throttle.first_refused_sequence, throttle.retry_after.ToMilliseconds()) == (1, 500)
        one.writer.commits()  # Whether its client reads the Ack or not.
        await until(lambda: budgets.inflight_bytes.used == 0)
        other.send(batch=ingest_pb2.Batch(sequence=1, traceparent="x" * 60))
        await other.has_taken(1)


async def test_a_client_that_dies_while_a_response_is_blocked_leaves_nothing() -> None:
    # As the transport does: it never comes back to the iterator, and says that the call is done.
    site = Site()
    ended: list[Any] = []

    class Context:
        def add_done_callback(self, callback: Any) -> None:
            ended.append(callback)

    servicer = IngestServicer(
        intake=site.world.intake,
        limiter=unlimited(),
        writer=cast(Any, site.writer),
        raw=RawTrail(keeps=lambda _: False),
        applied=cast(Any, None),
        backfills=cast(Any, None),
        clock=site.clock,
        new_stream=site.new_stream,
    )
    bind_call(site.call)
    responses = servicer.StreamTelemetry(site.sent(), Context())
    site.send(open=ingest_pb2.Open(writer_id="gw"))
    assert (await anext(responses)).HasField("opened")
    site.define(10)
    site.send(batch=ingest_pb2.Batch(sequence=1))
    await site.has_taken(1)
    assert site.budgets.inflight_bytes.used > 0
    assert site.budgets.definitions.used >= 10
    assert (len(site.streams), site.reading) == (1, True)
    for callback in ended:
        callback(None)
    assert await site.is_left()
    assert site.writer.submitted[0][1].cancelled()


async def test_a_stream_whose_credential_has_expired_takes_nothing_more() -> None:
    async with opened() as site:
        for sequence in (1, 2):
            site.send(batch=ingest_pb2.Batch(sequence=sequence))
        await site.has_taken(2)
        site.writer.commits(0)
        await until(lambda: site.budgets.inflight_bytes.used < 2 * ingest_pb2.Batch(sequence=1).ByteSize())
        site.call.end(Unauthenticated("it has expired", reason=ErrorReason.ERROR_REASON_TOKEN_INVALID))
        site.send(batch=ingest_pb2.Batch(sequence=3))
        await until(site.requests.empty)
        assert (await site.read()).ack.durable_through == 1
        assert (await site.fails()).reason == ErrorReason.ERROR_REASON_TOKEN_INVALID
        assert len(site.writer.submitted) == 2
        assert site.writer.submitted[1][1].cancelled()
        assert (len(site.streams), site.budgets.inflight_bytes.used) == (0, 0)


async def test_what_is_wrong_with_a_batch_stops_those_behind_it() -> None:
    async with opened() as site:
        for sequence in (1, 2, 3):
            site.send(batch=ingest_pb2.Batch(sequence=sequence))
        await site.has_taken(3)
        reused = InvalidArgument("reused", reason=ErrorReason.ERROR_REASON_SEQUENCE_REUSED)
        site.writer.commits(0)
        site.writer.submitted[1][1].set_exception(reused)
        await until(site.writer.submitted[2][1].cancelled)
        site.send(batch=ingest_pb2.Batch(sequence=4))
        await until(site.requests.empty)
        assert (await site.read()).ack.durable_through == 1
        assert await site.fails() is reused
        assert len(site.writer.submitted) == 3


@pytest.mark.parametrize(
    ("why", "reason"), [("fenced", "ERROR_REASON_FENCED"), ("drained", "ERROR_REASON_DEADLINE_EXCEEDED")]
)
async def test_a_client_that_does_not_read_is_cut_off(why: str, reason: str) -> None:
    async with opened() as site:  # Nobody comes back to the iterator: its last response is blocked.
        site.send(batch=ingest_pb2.Batch(sequence=1))
        await site.has_taken(1)
        site.writer.commits()
        if why == "fenced":
            site.stream.fence()
        else:
            site.stream.go_away(NOW + 8_000_000)
            site.after(8)
            site.after(2)
        site.after(1.9)
        assert site.cut_off_by is None
        assert site.stream.due_us == site.clock.now_us() + 100_000
        site.after(0.2)
        assert site.cut_off_by is not None
        assert ErrorReason.Name(site.cut_off_by.reason) == reason
        assert await site.is_left()


async def test_after_drain_by_a_stalled_database_is_waited_for_2_seconds() -> None:
    async with opened() as site:
        site.send(batch=ingest_pb2.Batch(sequence=1))
        await site.has_taken(1)
        site.stream.go_away(NOW + 8_000_000)
        assert (await site.read()).go_away.drain_by.ToMicroseconds() == NOW + 8_000_000
        ending = asyncio.create_task(site.rest())
        site.send(batch=ingest_pb2.Batch(sequence=2))  # Taken until drain_by.
        await site.has_taken(2)
        site.after(8)
        site.send(batch=ingest_pb2.Batch(sequence=3))
        site.after(1.9)
        await asyncio.sleep(0)
        assert not ending.done()
        site.after(0.2)
        assert await ending == []  # Without an error, and without an Ack.
        assert len(site.writer.submitted) == 2
        assert await site.is_left()


async def test_after_drain_by_the_last_acks_are_told() -> None:
    async with opened() as site:
        site.send(batch=ingest_pb2.Batch(sequence=1))
        await site.has_taken(1)
        site.stream.go_away(NOW + 8_000_000)
        assert (await site.read()).HasField("go_away")
        site.after(8)
        site.writer.commits()
        (last,) = await site.rest()
        assert last.ack.durable_through == 1


async def test_a_batch_is_thrown_back_after_close() -> None:
    async with opened() as site:
        for sequence in (1, 2, 3):
            site.send(batch=ingest_pb2.Batch(sequence=sequence))
        site.send(close=ingest_pb2.Close())
        await site.has_taken(3)
        site.writer.commits(0)
        site.writer.fails(1)
        told = await site.rest()
        assert [response.WhichOneof("message") for response in told] == ["ack", "throttle"]
        assert told[0].ack.durable_through == 1
        assert told[1].throttle.first_refused_sequence == 2
        assert told[1].throttle.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE


@pytest.mark.parametrize(
    ("traceparent", "traced"),
    [(f"00-{_TRACE}-b7ad6b7169203331-01", True), (f"00-{_TRACE}-b7ad6b7169203331-00", False), ("", False)],
)
async def test_a_recorded_batch_is_a_span_from_its_arrival_to_its_ack(
    monkeypatch: pytest.MonkeyPatch, traceparent: str, traced: bool
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("ingest_svc.batch_path.tracer", provider.get_tracer("test"))
    async with opened() as site:
        site.send(batch=ingest_pb2.Batch(sequence=1, traceparent=traceparent))
        await site.has_taken(1)
        carried = site.writer.submitted[0][0].span
        assert (carried is not None) == traced
        site.writer.commits()
        assert spans.get_finished_spans() == ()
        assert (await site.read()).HasField("ack")
    if traced:
        (span,) = spans.get_finished_spans()
        assert (span.name, dict(span.attributes or {})) == ("ingest.batch", {"twinmesh.sequence": 1})
        assert span.context is not None
        assert span.parent is not None
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (
            _TRACE,
            "b7ad6b7169203331",
        )
        assert carried == span.context
    else:
        assert spans.get_finished_spans() == ()


async def test_a_stopping_process_asks_to_leave_once_the_gateway_has_noticed() -> None:
    async with opened() as site:
        late = site.new_stream(
            OpenCall(site.call.principal, address="", cut_off=site.cut_off, renewed=lambda _: None)
        )
        draining = asyncio.create_task(site.streams.drain())
        await asyncio.sleep(0)
        site.streams.add(late)  # Let in, as long as the gateway may send somebody.
        site.streams.remove(late, None)
        assert (await site.read()).go_away.drain_by.ToMicroseconds() == NOW + 8_000_000
        with pytest.raises(Unavailable):
            site.streams.add(late)
        site.send(close=ingest_pb2.Close())
        assert await site.rest() == []
        await draining
