"""One caller's batch on its way to the database, and many of them prepared as one."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from telemetry_store.announcement import TenantSamples
from telemetry_store.columns import MICROS_PER_DAY, Kind, KindColumns
from telemetry_store.copy import CopyPayload, encode
from telemetry_store.cursors import CursorKey, Recorded
from telemetry_store.merge import Runs, latest, merge
from telemetry_store.quality import Codes
from telemetry_store.raw_payload import compress
from telemetry_store.request_ids import RequestKey
from telemetry_store.requests import (
    DeadLetter,
    Event,
    MessageChunk,
    MessageIdentity,
    RequestIdentity,
    WriteRequest,
    WriterIdentity,
)
from telemetry_store.tiers.bulk import SealedRow, split

LetterKey = tuple[str, int]  # tenant, dead letter id

# Judges samples that are about to be stored: of runs, and when each part that was merged into them
# came (int64[parts], microseconds since the epoch; 0: long before this batch), to int32[n] as in
# telemetry_store.quality. It is called from several threads, one at a time.
Judge = Callable[[Runs, npt.NDArray[np.int64]], Codes]


@dataclass(slots=True, eq=False)
class Batch:
    """A request under way.

    Attributes:
        request: as it came.
        refused: PostgreSQL has refused its content.
        skipped_since: when its cursor was first found locked elsewhere, by the loop's clock.
    """

    request: WriteRequest
    refused: bool = False
    skipped_since: float | None = None

    @property
    def record(self) -> Recorded:
        """Return what is kept under the batch's identity once it is committed."""
        request = self.request
        return Recorded(request.digest, request.refused_outcome if self.refused else request.outcome)

    @property
    def records(self) -> Sequence[Recorded]:
        """Return what is kept under each of `request_keys`."""
        if isinstance(identity := self.request.identity, MessageIdentity):
            return [Recorded(self.request.digest, outcome) for outcome in identity.outcomes]
        return (self.record,)

    @property
    def dead_letters(self) -> Sequence[DeadLetter]:
        """Return what is kept of what was refused."""
        return self.request.refused_dead_letters() if self.refused else self.request.dead_letters

    @property
    def samples(self) -> Sequence[KindColumns]:
        """Return what is to be stored."""
        return () if self.refused else self.request.samples

    @property
    def events(self) -> Sequence[Event]:
        """Return the events to be stored."""
        return () if self.refused else self.request.events

    @property
    def chunks(self) -> Sequence[MessageChunk]:
        """Return the chunks to be kept."""
        return () if self.refused else self.request.chunks

    @property
    def size(self) -> int:
        """Return how many samples came with the request."""
        return sum(len(columns) for columns in self.request.samples)

    @property
    def raw_bytes(self) -> int:
        """Return how many bytes its raw messages have, uncompressed."""
        return sum(len(message.payload) for message in self.request.raw)

    @property
    def cursor_key(self) -> CursorKey | None:
        """Return the writer's cursor, None without one."""
        identity = self.request.identity
        return (self.request.tenant, identity.writer_id) if isinstance(identity, WriterIdentity) else None

    @property
    def letter_key(self) -> LetterKey | None:
        """Return the dead letter that the batch comes from, None when it comes from none."""
        replay = self.request.replay
        return (self.request.tenant, replay.dead_letter_id) if replay is not None else None

    @property
    def request_keys(self) -> Sequence[RequestKey]:
        """Return the keys of the request id, or of each message in the batch's order; none without any."""
        tenant, principal = self.request.tenant, self.request.principal
        match self.request.identity:
            case RequestIdentity(request_id):
                return [(tenant, principal, request_id)]
            case MessageIdentity() as messages:
                return [(tenant, principal, messages.name(place)) for place in range(len(messages.sequences))]
            case _:
                return ()

    def without(self, messages: Set[int]) -> "Batch":
        """Return the batch without some of its messages, by their places."""
        request = self.request
        identity = request.identity
        assert isinstance(identity, MessageIdentity)  # noqa: S101 - as the callers know
        left_out = np.array(sorted(messages), np.int32)
        kept = [np.flatnonzero(~np.isin(places, left_out)) for places in identity.samples]
        letters = [place for place, message in enumerate(identity.dead_letters) if message not in messages]
        raw = [place for place, message in enumerate(identity.raw) if message not in messages]
        chunks = [place for place, message in enumerate(identity.chunks) if message not in messages]
        return Batch(
            replace(
                request,
                identity=replace(
                    identity,
                    samples=[places[chosen] for places, chosen in zip(identity.samples, kept, strict=True)],
                    dead_letters=[identity.dead_letters[place] for place in letters],
                    raw=[identity.raw[place] for place in raw],
                    chunks=[identity.chunks[place] for place in chunks],
                ),
                samples=[columns.at(chosen) for columns, chosen in zip(request.samples, kept, strict=True)],
                dead_letters=[request.dead_letters[place] for place in letters],
                raw=[request.raw[place] for place in raw],
                chunks=[request.chunks[place] for place in chunks],
            )
        )

    @property
    def sender(self) -> tuple[str, str]:
        """Return who is answerable for the content: the writer, without one the principal."""
        return self.cursor_key or (self.request.tenant, self.request.principal)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows for these batches, ready to be stamped.

    Attributes:
        batches: in arrival order.
        payload: their rows.
        rows: how many.
        samples: how many are stored.
        in_rows: how many of them `payload` has, by kind.
        days: UTC days they touch, as days since 1970-01-01, ascending.
        latest: the latest sample of each of their series, by tenant and kind.
        raw: payloads of their raw messages, compressed, in the order of the batches.
        sealed: what is stored sealed at once; neither `payload` nor `rows` has it.
    """

    batches: tuple[Batch, ...]
    payload: CopyPayload
    rows: int
    samples: int
    in_rows: Mapping[Kind, int]
    days: tuple[int, ...]
    latest: tuple[TenantSamples, ...]
    raw: tuple[bytes, ...]
    sealed: tuple[SealedRow, ...] = ()


def prepare(batches: Sequence[Batch], judge: Judge | None = None) -> Prepared:
    """Merge the batches' samples, judge them and build their rows; may run in a thread.

    Raises:
        UnicodeEncodeError: a string has no UTF-8 form.
    """
    parts: defaultdict[Kind, list[KindColumns]] = defaultdict(list)
    origins: defaultdict[Kind, list[WriteRequest]] = defaultdict(list)
    for batch in batches:
        for columns in batch.samples:
            if len(columns):
                parts[columns.kind].append(columns)
                origins[columns.kind].append(batch.request)
    merged: list[tuple[Runs, list[str]]] = []
    hot: list[tuple[Runs, list[str]]] = []
    sealed: list[SealedRow] = []
    for kind, requests in origins.items():
        tenants = [request.tenant for request in requests]
        received = np.array([request.received_us for request in requests], np.int64)
        runs = _judged(merge(parts[kind]), received, judge)
        merged.append((runs, tenants))
        runs, rows = split(runs, parts[kind], tenants, [request.bulk for request in requests])
        sealed += rows
        if len(runs.starts):
            hot.append((runs, tenants))
    days = {int(day) for runs, _ in merged for day in np.unique(runs.times[runs.starts] // MICROS_PER_DAY)}
    return Prepared(
        batches=tuple(batches),
        payload=encode(hot),
        rows=sum(len(runs.starts) for runs, _ in hot),
        samples=sum(len(runs.times) for runs, _ in merged),
        in_rows={runs.kind: int(runs.lengths.sum()) for runs, _ in hot},
        days=tuple(sorted(days)),
        latest=tuple(latest for runs, tenants in merged for latest in _latest(runs, tenants)),
        raw=compress([message.payload for batch in batches for message in batch.request.raw]),
        sealed=tuple(sealed),
    )


def _judged(runs: Runs, received_us: npt.NDArray[np.int64], judge: Judge | None) -> Runs:
    return runs if judge is None else replace(runs, quality=judge(runs, received_us))


def _latest(runs: Runs, tenants: Sequence[str]) -> Iterator[TenantSamples]:
    """Yield the latest samples of runs by tenant; parts say whose they are, a series is of one tenant."""
    samples, origins = latest(runs)
    names, of_parts = np.unique(np.array(tenants, dtype=np.object_), return_inverse=True)
    if len(names) == 1:
        yield names[0], samples.compact()
        return
    # Sorted and cut: a look at all samples per tenant is too slow with many tenants. Small integers
    # are sorted by their digits.
    of_samples = of_parts.astype(np.min_scalar_type(len(names)))[origins]
    samples = samples.at(np.argsort(of_samples, kind="stable"))
    ends = np.cumsum(np.bincount(of_samples, minlength=len(names))).tolist()
    for tenant, start, end in zip(names.tolist(), [0, *ends], ends, strict=False):
        yield tenant, samples.at(slice(start, end)).compact()
