"""A server of StreamTelemetry after the contract's words, in memory, that misbehaves as far as it may."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

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
    """

    chance: random.Random
    faults: dict[str, float] = field(default_factory=dict)
    batches: dict[int, ingest_pb2.Batch] = field(default_factory=dict)
    opens: int = 0
    wrong: list[str] = field(default_factory=list)

    async def StreamTelemetry(self, request_iterator: Any, context: Any) -> AsyncIterator[_Response]:
        self.opens += 1
        stream = _Stream(self)
        requests: asyncio.Queue[Any] = asyncio.Queue()
        reader = asyncio.create_task(_read(request_iterator, requests))
        try:
            while True:
                try:
                    request = await asyncio.wait_for(requests.get(), _ACK_PAUSE_S)
                except TimeoutError:
                    for response in stream.acknowledge():
                        yield response
                    continue
                kind = "close" if request is None else request.WhichOneof("message")
                if kind == "close":
                    for response in stream.acknowledge():
                        yield response
                    return
                if kind == "open":
                    yield self._opened()
                elif kind == "series_defs":
                    stream.aliases.update(definition.alias for definition in request.series_defs.defs)
                else:
                    fault = self.fault()
                    for response in stream.take(request.batch, fault):
                        yield response
                    if fault in {"unavailable", "silent"}:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
                    if fault == "ended":
                        return
        finally:
            reader.cancel()

    def fault(self) -> str | None:
        """Return what goes wrong with the next batch."""
        names = list(self.faults)
        weights = [self.faults[name] for name in names]
        (fault,) = self.chance.choices([*names, None], [*weights, 1 - sum(weights)])
        return fault

    def _opened(self) -> _Response:
        return _Response(
            opened=ingest_pb2.Opened(
                epoch=self.opens,
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
        self.aliases: set[int] = set()

    def take(self, batch: ingest_pb2.Batch, fault: str | None) -> Iterator[_Response]:
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
        if self._unacknowledged:
            through = max(self._unacknowledged)
            self._unacknowledged.clear()
            yield _Response(ack=ingest_pb2.Ack(accepted_through=through, durable_through=through))


async def _read(requests: Any, queue: "asyncio.Queue[Any]") -> None:
    async for request in requests:
        await queue.put(request)
    await queue.put(None)


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
