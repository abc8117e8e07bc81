"""What a stream's client is told: Opened, Ack, Throttle, GoAway."""

from ingest_svc.applied import AppliedProgress
from ingest_svc.batch_path import MAX_BATCH_BYTES
from ingest_svc.columns import MAX_REFUSALS
from ingest_svc.flow import MAX_INFLIGHT_BATCHES, BatchFlow, Refusal
from ingest_svc.series_table import MAX_SERIES
from telemetry_store.cursors import OUTCOMES_KEPT
from telemetry_store.requests import OpenedCursor
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

_MAX_ACK_BYTES = 768 * 1024  # With one batch's refusals beyond it an Ack stays below 1 MiB.


class Acks:
    """The Acks of one stream.

    Attributes:
        tells_accepted: the client wants to know of batches before they are durable.
        applied: how far the twins are, None when the client does not want to know.
        batches: how many it was told the outcome of.
        samples: how many of theirs are stored.
    """

    __slots__ = ("_accepted_through", "_applied_through", "applied", "batches", "samples", "tells_accepted")

    def __init__(self) -> None:
        self._accepted_through = 0
        self._applied_through = 0
        self.tells_accepted = False
        self.applied: AppliedProgress | None = None
        self.batches = 0
        self.samples = 0

    def next(self, flow: BatchFlow) -> ingest_pb2.Ack | None:
        """Return the next Ack, None when there is no news, and give back the credits of what it covers."""
        if (
            flow.acknowledgeable
            or (self.tells_accepted and flow.accepted_through > self._accepted_through)
            or (self.applied is not None and self.applied.through > self._applied_through)
        ):
            return self._ack(flow)
        return None

    def close(self) -> None:
        """Follow the twins no more."""
        if self.applied is not None:
            self.applied.close()

    def _ack(self, flow: BatchFlow) -> ingest_pb2.Ack:
        results: list[ingest_pb2.BatchResult] = []
        for taken in flow.acknowledge(_MAX_ACK_BYTES):
            assert isinstance(taken.answer, bytes)  # noqa: S101 - as acknowledge says
            result = ingest_pb2.BatchResult.FromString(taken.answer)
            self.batches += 1
            self.samples += result.stored_samples
            if result.reason or result.refused_samples or result.refused_events:
                result.sequence = taken.sequence
                del result.refusals[MAX_REFUSALS:]  # The unary door records more of them.
                results.append(result)
            if self.applied is not None:
                self.applied.durable(taken.sequence, taken.commit)
        self._accepted_through = flow.accepted_through
        if self.applied is not None:
            self._applied_through = self.applied.through
        return ingest_pb2.Ack(
            accepted_through=flow.accepted_through,
            durable_through=flow.durable_through,
            applied_through=self._applied_through,
            results=results,
        )


def to_opened(
    cursor: OpenedCursor, *, lifetime_us: int, now_us: int, max_inflight_bytes: int
) -> ingest_pb2.Opened:
    """Return the answer to Open: the writer's place, and what the client has to keep to."""
    opened = ingest_pb2.Opened(
        epoch=cursor.epoch,
        last_committed_sequence=cursor.last_sequence,
        max_batch_bytes=MAX_BATCH_BYTES,
        max_inflight_batches=MAX_INFLIGHT_BATCHES,
        max_inflight_bytes=max_inflight_bytes,
        outcomes_kept=OUTCOMES_KEPT,
        max_series=MAX_SERIES,
    )
    opened.max_stream_lifetime.FromMicroseconds(lifetime_us)
    opened.server_time.FromMicroseconds(now_us)
    return opened


def to_throttle(refusal: Refusal) -> ingest_pb2.Throttle:
    """Return from which batch on the client is to send again, why, and when."""
    error = refusal.error
    throttle = ingest_pb2.Throttle(
        limit_name=error.metadata.get("limit_name", ""),
        limit=int(error.metadata.get("limit", 0)),
        used=int(error.metadata.get("used", 0)),
        first_refused_sequence=refusal.first_refused,
        reason=error.reason,
        message=error.message,
    )
    throttle.retry_after.FromMilliseconds(int((error.retry_after_s or 0) * 1000))
    return throttle


def to_go_away(drain_by_us: int) -> ingest_pb2.GoAway:
    """Return by when the client is to have reconnected elsewhere."""
    go_away = ingest_pb2.GoAway()
    go_away.drain_by.FromMicroseconds(drain_by_us)
    return go_away
