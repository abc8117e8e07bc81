"""Readings as they were sent: plain, ordered, with a digest that retries agree on."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

# Forms of a sent value beside the five kinds (1 to 5, `telemetry_store.columns.Kind`):
# a bare number, whose kind is the metric's, and nothing at all, which the contract refuses.
NUMBER = 0
UNSET = -1

SentPoint = tuple[float, float, float | None]  # latitude, longitude, altitude
SentValue = float | int | bool | str | SentPoint | None  # None: UNSET


# One value: its metric, its form (NUMBER or a kind's number) and itself. A bare tuple,
# for there may be many in one request.
SentSample = tuple[str, int, SentValue]


class Reading(NamedTuple):
    """What one device sent for one time.

    `time_us` is in microseconds since the epoch, None when the server shall fill it.
    `samples` are sorted by metric; a metric stated twice stands in it twice.
    """

    device_id: str
    time_us: int | None
    samples: Sequence[SentSample]


def samples_by_device(readings: Sequence[Reading]) -> Counter[str]:
    """Return how many samples of each device there are."""
    counts = Counter[str]()
    for reading in readings:
        counts[reading.device_id] += len(reading.samples)
    return counts


_CANONICAL = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False)
_FORMAT = "readings/1"
_CANONICAL_REFUSED = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # with NaN and infinities
_REFUSED_FORMAT = "refused/1"


class ReadingAsSent(NamedTuple):
    """A reading that may break every rule of the contract; `time` is in seconds and nanoseconds."""

    device_id: str
    time: tuple[int, int] | None
    samples: Sequence[SentSample]


def digest(readings: Sequence[Reading], *, all_or_nothing: bool, backfill_id: str) -> bytes:
    """Return 32 bytes that are equal exactly when the same content was sent.

    It is the SHA-256 of the content as ASCII JSON, in which floats are the shortest
    text that reads back as the same number. Protobuf's own deterministic form is not
    used: it may change with the library, and the digest of a writer's batch must still
    match when a retry comes after an upgrade.
    """
    content = [_FORMAT, all_or_nothing, backfill_id, readings]
    return hashlib.sha256(_CANONICAL.encode(content).encode("ascii")).digest()


def digest_refused(
    readings: Sequence[ReadingAsSent], *, all_or_nothing: bool, columns: bytes | None
) -> bytes:
    """Return likewise 32 bytes for a batch of readings that is refused before it is read.

    Args:
        readings: as sent.
        all_or_nothing: the batch's mode.
        columns: digest of columns that were sent beside, None when there were none.
    """
    beside = None if columns is None else columns.hex()
    content = [_REFUSED_FORMAT, all_or_nothing, readings, beside]
    return hashlib.sha256(_CANONICAL_REFUSED.encode(content).encode("ascii")).digest()
