"""Announcements of commits, as messages: pure functions, no I/O.

A contract between services that travels over NATS, on a subject per instance
(proto/twinmesh/ingest/v1/commit_announcement.proto).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from telemetry_store.columns import POINT_WIDTH, Kind, KindColumns
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.latest_columns import LatestColumns
from twinmesh.ingest.v1 import commit_announcement_pb2 as contract
from twinmesh.type.v1 import value_pb2

SUBJECT = "telemetry.commit.*"
_LARGEST_SERIES = np.iinfo(np.int32).max
_LARGEST = np.iinfo(np.int64).max
_NUMBERS: dict[Kind, str] = {
    Kind.DOUBLE: "<f8",
    Kind.INT: "<i8",
    Kind.BOOL: "?",
    Kind.POINT: "<f8",
}
_HEAD_BYTES = 256  # More than a part's numbers and trace, and what begins its samples but the tenant, take.
_SAMPLE_BYTES = 12  # A series and a time.

TenantSamples = tuple[str, KindColumns]


@dataclass(frozen=True, slots=True)
class Announcement:
    """One part of what is announced of a commit.

    Attributes:
        instance: of the ingest process.
        commit_no: contiguous per instance.
        order_no: decides which of two samples of equal time is later.
        part: which part this is, from 0.
        parts: how many the announcement has.
        traceparent: W3C trace context of the commit's span, "" when it is not recorded.
        latest: the latest samples of series that the commit stored, by tenant and kind.
    """

    instance: int
    commit_no: int
    order_no: int
    part: int
    parts: int
    traceparent: str
    latest: Sequence[LatestColumns]


def subject_of(instance: int) -> str:
    """Return the subject that an instance's commits are announced on."""
    return f"telemetry.commit.{instance}"


def encode(
    numbers: CommitNumbers, latest: Sequence[TenantSamples], *, traceparent: str, max_bytes: int
) -> list[bytes]:
    """Return the messages that announce a commit.

    Args:
        numbers: the commit's.
        latest: the latest sample of each series, by tenant and kind; may be empty.
        traceparent: of the commit's span, "" when it is not recorded.
        max_bytes: most bytes of a message; one sample that is larger is sent alone all the same.
    """
    groups = [
        group
        for tenant, samples in latest
        if len(samples)
        for group in _split(tenant, samples, max_bytes - _HEAD_BYTES)
    ]
    parts = _packed(groups, max_bytes - _HEAD_BYTES) or [[]]
    return [
        contract.CommitAnnouncement(
            instance=numbers.instance,
            commit_no=numbers.commit_no,
            order_no=numbers.order_no,
            part=number,
            parts=len(parts),
            traceparent=traceparent,
            latest=part,
        ).SerializeToString()
        for number, part in enumerate(parts)
    ]


def decode(payload: bytes) -> Announcement:
    """Read a message.

    Raises:
        ValueError: it is no announcement as this module writes it.
    """
    try:
        message = contract.CommitAnnouncement.FromString(payload)
    except DecodeError as error:
        raise ValueError("the bytes are no announcement") from error
    if not (0 < message.instance <= _LARGEST_SERIES and 0 < message.commit_no <= _LARGEST):
        raise ValueError(f"no commit has the numbers ({message.instance}, {message.commit_no})")
    if not (0 < message.order_no <= _LARGEST and message.part < message.parts):
        raise ValueError(f"part {message.part} of {message.parts}, order {message.order_no}")
    return Announcement(
        message.instance,
        message.commit_no,
        message.order_no,
        message.part,
        message.parts,
        message.traceparent,
        [
            LatestColumns.of_commit(
                group.tenant,
                _columns(group),
                instance=message.instance,
                commit_no=message.commit_no,
                order_no=message.order_no,
            )
            for group in message.latest
        ],
    )


def _split(tenant: str, samples: KindColumns, max_bytes: int) -> Iterator[contract.LatestSamples]:
    """Yield samples in groups of at most so many bytes, each with its tenant."""
    max_bytes -= len(tenant.encode())
    sizes = np.full(len(samples), float(_SAMPLE_BYTES))
    if samples.kind is Kind.STRING:
        # A string's characters take up to four bytes, and its length up to four more.
        sizes += 4 * np.fromiter(map(len, samples.tolist()), dtype=np.float64, count=len(samples)) + 8
    else:
        sizes += samples.values[:1].nbytes
    if samples.quality is not None:
        sizes += samples.quality.itemsize
    ends = np.cumsum(sizes)
    start = 0
    while start < len(samples):
        before = ends[start - 1] if start else 0.0
        end = max(int(np.searchsorted(ends, before + max_bytes, side="right")), start + 1)
        yield _group(tenant, samples.at(slice(start, end)))
        start = end


def _group(tenant: str, samples: KindColumns) -> contract.LatestSamples:
    group = contract.LatestSamples(
        tenant=tenant,
        kind=value_pb2.ValueKind.ValueType(samples.kind),
        series=samples.series.astype("<u4").tobytes(),
        times=samples.times.astype("<i8").tobytes(),
        quality=b"" if samples.quality is None else samples.quality.astype("<i4").tobytes(),
    )
    if samples.kind is Kind.STRING:
        group.strings.extend(samples.tolist())
    else:
        group.numbers = samples.values.astype(_NUMBERS[samples.kind]).tobytes()
    return group


def _packed(groups: Sequence[contract.LatestSamples], max_bytes: int) -> list[list[contract.LatestSamples]]:
    """Put groups together, in their order, as far as they fit into a part."""
    parts: list[list[contract.LatestSamples]] = []
    size = math.inf
    for group in groups:
        own = group.ByteSize() + 8
        if size + own > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += own
    return parts


def _columns(group: contract.LatestSamples) -> KindColumns:
    try:
        kind = Kind(group.kind)
    except ValueError as error:
        raise ValueError(f"no kind has the number {group.kind}") from error
    series: npt.NDArray[Any] = np.frombuffer(group.series, dtype="<u4")
    if len(series) and (series.min() == 0 or series.max() > _LARGEST_SERIES):
        raise ValueError("a series has a number that none has")
    times = np.frombuffer(group.times, dtype="<i8").astype(np.int64, copy=False)
    quality = (
        np.frombuffer(group.quality, dtype="<i4").astype(np.int32, copy=False) if group.quality else None
    )
    # Raises when lengths or types disagree.
    if kind is Kind.STRING:
        return KindColumns.of(kind, series.astype(np.int32), times, group.strings, quality)
    return KindColumns(kind, series.astype(np.int32), times, _numbers(kind, group), quality)


def _numbers(kind: Kind, group: contract.LatestSamples) -> npt.NDArray[Any]:
    values: npt.NDArray[Any]
    if kind is Kind.BOOL:
        values = np.frombuffer(group.numbers, dtype=np.uint8).astype(np.bool_)
    else:
        values = np.frombuffer(group.numbers, dtype=_NUMBERS[kind])
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if kind is Kind.POINT:
            values = values.reshape(-1, POINT_WIDTH)
    return values
