"""What the server refused for good: counted, logged, and told to whoever wants to know."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client.reasons import reason_name
from twinmesh_client.recurring import Recurring
from twinmesh_client.stats import Counters

_log = logging.getLogger("twinmesh_client")
_LISTED = 10  # Refusals in a warning.


@dataclass(frozen=True, slots=True)
class Refusal:
    """Samples that the server refused for good.

    Attributes:
        device_id: of their series.
        metric: of their series.
        reason: the contract's ErrorReason without its prefix, such as "DEVICE_UNKNOWN".
        message: the reason to read.
        first_sample: place of the first one in its batch.
        samples: how many, one after the other.
    """

    device_id: str
    metric: str
    reason: str
    message: str
    first_sample: int
    samples: int


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """A batch of which the server refused something for good.

    Attributes:
        sequence: the batch's number.
        reason: why the whole batch was refused, empty when it was not.
        message: that reason to read.
        stored_samples: how many were stored.
        refused_samples: how many were not.
        refusals: why, the first 100.
    """

    sequence: int
    reason: str
    message: str
    stored_samples: int
    refused_samples: int
    refusals: tuple[Refusal, ...]


class Refusals:
    """Takes note of what one client's server refused.

    Args:
        name: of the gateway, for the log.
        counters: of the client.
        on_refused: called with each batch; what it raises is logged.
    """

    def __init__(
        self, *, name: str, counters: Counters, on_refused: Callable[[RefusedBatch], None] | None
    ) -> None:
        self._name = name
        self._counters = counters
        self._on_refused = on_refused
        self._told = Recurring(self._warn)

    def take(self, result: ingest_pb2.BatchResult) -> None:
        """Take note of a batch of which something was refused, inside of an event loop."""
        self._counters.refused_samples += result.refused_samples
        refused = _refused_batch(result)
        if refused.reason:
            self._told.note(f"a batch: {refused.reason}, {refused.message}", refused.refused_samples)
        for refusal in refused.refusals:
            self._told.note(
                f"{refusal.device_id}/{refusal.metric}: {refusal.reason}, {refusal.message}", refusal.samples
            )
        if self._on_refused is not None:
            try:
                self._on_refused(refused)
            except Exception:
                _log.exception("%s: on_refused failed", self._name)

    def close(self) -> None:
        """Warn of the rest, and no more."""
        self._told.close()

    def _warn(self, samples: Counter[str]) -> None:
        told = "; ".join(f"{what} ({count} samples)" for what, count in samples.most_common(_LISTED))
        more = f"; and {len(samples) - _LISTED} more" if len(samples) > _LISTED else ""
        _log.warning("%s: samples were refused: %s%s", self._name, told, more)


def _refused_batch(result: ingest_pb2.BatchResult) -> RefusedBatch:
    return RefusedBatch(
        sequence=result.sequence,
        reason=reason_name(result.reason),
        message=result.message,
        stored_samples=result.stored_samples,
        refused_samples=result.refused_samples,
        refusals=tuple(
            Refusal(
                device_id=refusal.device_id,
                metric=refusal.metric,
                reason=reason_name(refusal.reason),
                message=refusal.message,
                first_sample=refusal.reading_index,
                samples=refusal.sample_count,
            )
            for refusal in result.refusals
        ),
    )
