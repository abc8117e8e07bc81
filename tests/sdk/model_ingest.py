"""A server of StreamTelemetry after the contract's words, in memory, that misbehaves as far as it may."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_Response = ingest_pb2.StreamTelemetryResponse
_ACK_PAUSE_S = 0.005
MAX_BATCHES = 5
MAX_BYTES = 1 << 20
OUTCOMES_KEPT = 8


@dataclass
class ModelIngest(ingest_grpc.IngestServiceServicer):
    """Takes the batches of one writer.

    Args:
        chance: decides about faults.
        faults: how likely each is at a batch: "busy", "unknown_alias", "go_away", "unavailable",
            "ended", "silent" (the commit happens, its Ack is lost).
        is_away: whether all streams end as UNAVAILABLE.
        is_suspended: whether the tenant is: streams end as TOKEN_REVOKED, and Open is refused.
        is_revoked: whether the credential is: streams end as TOKEN_REVOKED, and Open is refused so.
        answers_open: whether Opened is sent.
        acknowledges: whether Acks are sent.
        gaps: at so many batches from now on, streams end as SEQUENCE_GAP.
        is_masked: whether FENCED reaches the client as the INTERNAL that grpc makes of it when the
            client writes at that moment.

    Attributes:
        opens: those that were taken; the last one has the writer.
        ended: how many streams have ended.
        refused: how many streams were refused because the tenant is suspended.
    """

    chance: random.Random
    faults: dict[str, float] = field(default_factory=dict)
    batches: dict[int, ingest_pb2.Batch] = field(default_factory=dict)
    opens: list[ingest_pb2.Open] = field(default_factory=list)
    ended: int = 0
    refused: int = 0
    is_away: bool = False
    is_suspended: bool = False
    is_revoked: bool = False
    answers_open: bool = True
    acknowledges: bool = True
    gaps: int = 0
    is_masked: bool = False
    wrong: list[str] = field(default_factory=list)

    async def StreamTelemetry(self, request_iterator: Any, context: Any) -> AsyncIterator[_Response]:
        stream = _Stream(self)
        requests: asyncio.Queue[Any] = asyncio.Queue()
        reader = asyncio.create_task(_read(request_iterator, requests))
        try:
            while True:
                await self._end_if_over(stream, context)
                try:
                    # Not wait_for, which can swallow the cancellation of a call that is over.
                    async with asyncio.timeout(_ACK_PAUSE_S):
                        request = await requests.get()
                except TimeoutError:
                    for response in stream.acknowledge():
                        yield response
                    continue
                kind = request.WhichOneof("message")
                if kind == "batch" and self.gaps:
                    self.gaps -= 1
                    await _abort(context, "SEQUENCE_GAP", "a batch was left out")
                fault = self.fault() if kind == "batch" else None
                for response in stream.take(request, fault):
                    yield response
                if fault in {"unavailable", "silent"}:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
                if kind == "close" or fault == "ended":
                    return
        finally:
            self.ended += 1
            reader.cancel()

    def fault(self) -> str | None:
        """Return what goes wrong with the next batch."""
        names = list(self.faults)
        weights = [self.faults[name] for name in names]
        (fault,) = self.chance.choices([*names, None], [*weights, 1 - sum(weights)])
        return fault

    async def _end_if_over(self, stream: "_Stream", context: Any) -> None:
        if self.is_away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if self.is_suspended and not stream.is_open:
            self.refused += 1
            await _abort(
                context, "TENANT_SUSPENDED", "it is suspended", code=grpc.StatusCode.PERMISSION_DENIED
            )
        if self.is_suspended or self.is_revoked:
            await _abort(context, "TOKEN_REVOKED", "revoked", code=grpc.StatusCode.UNAUTHENTICATED)
        if not stream.is_fenced:
            return
        if self.is_masked:
            await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
        await _abort(context, "FENCED", "another stream took over")

    def opened(self) -> _Response:
        """Return the answer to Open."""
        return _Response(
            opened=ingest_pb2.Opened(
                epoch=len(self.opens),
                last_committed_sequence=len(self.batches),
                max_batch_bytes=MAX_BYTES,
                max_inflight_batches=MAX_BATCHES,
                max_inflight_bytes=MAX_BYTES,
                outcomes_kept=OUTCOMES_KEPT,
                max_series=100_000,
            )
        )

    def commit(self, batch: ingest_pb2.Batch) -> None:
        """Store a batch, or note what is wrong with its number or content."""
        last = len(self.batches)
        if batch.sequence == last + 1:
            self.batches[batch.sequence] = batch
        elif batch.sequence > last:
            self.wrong.append(f"gap: {batch.sequence} after {last}")
        elif batch.sequence <= last - OUTCOMES_KEPT:
            self.wrong.append(f"{batch.sequence} came again after {last}")
        elif self.batches[batch.sequence] != batch:
            self.wrong.append(f"other content under {batch.sequence}")


class _Stream:
    """What a stream remembers."""

    def __init__(self, model: ModelIngest) -> None:
        self._model = model
        self._unacknowledged: deque[int] = deque()
        self._go_back: int | None = None
        self._epoch: int | None = None
        self.aliases: set[int] = set()

    def _open(self, message: ingest_pb2.Open) -> Iterator[_Response]:
        opens = self._model.opens
        if message.resume and message.session_id != opens[-1].session_id:
            self._epoch = 0
            return
        opens.append(message)
        self._epoch = len(opens)
        if self._model.answers_open:
            yield self._model.opened()

    @property
    def is_open(self) -> bool:
        return self._epoch is not None

    @property
    def is_fenced(self) -> bool:
        return self._epoch is not None and self._epoch < len(self._model.opens)

    def take(self, request: ingest_pb2.StreamTelemetryRequest, fault: str | None) -> Iterator[_Response]:
        match request.WhichOneof("message"):
            case "open":
                yield from self._open(request.open)
            case "series_defs":
                self.aliases.update(definition.alias for definition in request.series_defs.defs)
            case "batch":
                yield from self._take_batch(request.batch, fault)
            case _:
                yield from self.acknowledge()

    def _take_batch(self, batch: ingest_pb2.Batch, fault: str | None) -> Iterator[_Response]:
        if fault in {"unavailable", "ended"} or (
            self._go_back is not None and batch.sequence > self._go_back
        ):
            return
        if len(self._unacknowledged) >= MAX_BATCHES:
            self._model.wrong.append("more in flight than the credits")
        if fault == "busy":
            self._go_back = batch.sequence
            yield _throttle(batch.sequence, ErrorReason.ERROR_REASON_INGEST_BUSY)
        elif fault == "unknown_alias" or not self.aliases.issuperset(batch.columns.series):
            if fault != "unknown_alias":
                self._model.wrong.append("an alias was not defined")
            self.aliases.clear()
            self._go_back = batch.sequence
            yield _throttle(batch.sequence, ErrorReason.ERROR_REASON_UNKNOWN_ALIAS)
        else:
            self._go_back = None
            self._model.commit(batch)
            self._unacknowledged.append(batch.sequence)
            if fault == "go_away":
                yield _Response(go_away=ingest_pb2.GoAway())

    def acknowledge(self) -> Iterator[_Response]:
        if self._unacknowledged and self._model.acknowledges:
            through = max(self._unacknowledged)
            self._unacknowledged.clear()
            yield _Response(ack=ingest_pb2.Ack(accepted_through=through, durable_through=through))


async def _abort(
    context: Any,
    reason: str,
    message: str,
    *,
    code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION,
) -> None:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="twinmesh"))
    await context.abort(
        code,
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )


async def _read(requests: Any, queue: "asyncio.Queue[Any]") -> None:
    try:
        async for request in requests:
            queue.put_nowait(request)
    finally:
        queue.put_nowait(ingest_pb2.StreamTelemetryRequest(close=ingest_pb2.Close()))


def _throttle(first_refused: int, reason: ErrorReason.ValueType) -> _Response:
    throttle = ingest_pb2.Throttle(first_refused_sequence=first_refused, reason=reason)
    throttle.retry_after.FromMilliseconds(2)
    return _Response(throttle=throttle)


@asynccontextmanager
async def serving(model: ModelIngest) -> AsyncIterator[str]:
    """Serve a model; yields its address."""
    server = grpc.aio.server()
    ingest_grpc.add_IngestServiceServicer_to_server(model, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
