"""The group commit's transaction, in the order that the commit protocol fixes.

Cursors are locked, duplicates and gaps dropped, request ids claimed, the commit's
numbers taken, segments copied, cursors advanced, the commit recorded: docs/adr/0003
and 0004 say why in this order.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshkit.db import Connection
from meshkit.errors import DomainError
from telemetry_store import bulk_rows, chunks, cursors, dead_letters, events, raw_messages, request_ids
from telemetry_store.announcement import TenantSamples
from telemetry_store.batch import Batch, LetterKey, Prepared
from telemetry_store.chunks import GroupChunks, MessageKey
from telemetry_store.columns import NUMERIC_KINDS
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.copy import COLUMNS
from telemetry_store.cursors import Cursor, CursorKey, Recorded
from telemetry_store.device_sets import DeviceSetIds
from telemetry_store.instances import take_numbers
from telemetry_store.request_ids import RequestKey
from telemetry_store.requests import MessageIdentity, WriteResult, WriterIdentity

_propagator = TraceContextTextMapPropagator()
Answer = WriteResult | DomainError
Prepare = Callable[[Sequence[Batch]], Awaitable[Prepared]]


class InstanceClosedError(Exception):
    """The instance was closed: register anew and start the transaction again."""


@dataclass(slots=True)
class Decision:
    """What becomes of a group's batches if its transaction commits.

    Attributes:
        answers: by batch; a batch without one was skipped, its cursor being locked elsewhere.
        taken: batches to store, in arrival order.
        advanced: records by cursor and sequence, ascending per cursor.
        chunks: what is known of their chunks, None when they have none.
    """

    answers: dict[Batch, Answer] = field(default_factory=dict)
    taken: list[Batch] = field(default_factory=list)
    advanced: dict[tuple[CursorKey, int], Recorded] = field(default_factory=dict)
    # What is left of batches some of whose messages are known.
    left: dict[Batch, Batch] = field(default_factory=dict)
    chunks: GroupChunks | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit holds.

    Attributes:
        numbers: its place in the feed and in the order of all commits.
        samples: how many it stores.
        latest: the latest sample of each series in it, by tenant and kind.
        traceparent: W3C trace context of its span, "" when it is not recorded.
        whole: messages whose last chunk it holds.
    """

    numbers: CommitNumbers
    samples: int
    latest: Sequence[TenantSamples]
    traceparent: str
    whole: Sequence[MessageKey] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """A group that is stored, not yet committed; without a commit nothing was new.

    Attributes:
        answers: by batch; one without was skipped.
        commit: what it holds.
        dead_letters: how many are new, by reason and door.
    """

    answers: dict[Batch, Answer]
    commit: Commit | None
    dead_letters: Mapping[tuple[str, str], int] = field(default_factory=dict)


async def store_group(
    connection: Connection,
    batches: Sequence[Batch],
    prepared: Prepared | None,
    prepare: Prepare,
    *,
    instance: int,
    device_sets: DeviceSetIds,
) -> Stored:
    """Do all of a group's work but its COMMIT.

    Args:
        connection: in a transaction that has done nothing yet.
        batches: in arrival order; their cursors exist.
        prepared: rows of all batches, built in the hope that none is dropped, or None.
        prepare: builds the rows of those that are left.
        instance: this process's.
        device_sets: ids of all sets of devices that their raw messages speak of.

    Raises:
        InstanceClosedError: nothing may be committed under this instance.
        asyncpg.PostgresError: as the database says.
    """
    decision = await _decide(connection, batches)
    if not decision.taken:
        return Stored(decision.answers, None)
    if prepared is None or prepared.batches != tuple(decision.taken):
        prepared = await prepare(decision.taken)
    numbers = await take_numbers(connection, instance)
    if numbers is None:
        raise InstanceClosedError
    if prepared.rows:
        await _copy(connection, prepared, numbers)
    if prepared.sealed:
        await bulk_rows.copy(connection, prepared.sealed, numbers)
    letters = await dead_letters.keep(connection, decision.taken)
    await raw_messages.insert(
        connection,
        [batch.request for batch in decision.taken],
        prepared.raw,
        device_sets,
    )
    await events.insert(
        connection,
        ((batch.request.tenant, event) for batch in decision.taken for event in batch.events),
        numbers,
    )
    whole = await chunks.store(connection, decision.chunks, decision.taken) if decision.chunks else []
    if decision.advanced:
        await cursors.advance(connection, decision.advanced)
    traceparent = _traceparent()
    ranges = bulk_rows.ranges(prepared.sealed)
    await connection.execute(
        """
        INSERT INTO telemetry.ingest_commit
            (instance, commit_no, order_no, days, traceparent, bulk_series, bulk_starts, bulk_ends,
             doubles, ints, bools)
        SELECT $1, $2, $3, ARRAY (SELECT date '1970-01-01' + day FROM unnest($4::integer[]) AS day), $5,
            $6, $7, $8, $9, $10, $11
        """,
        numbers.instance,
        numbers.commit_no,
        numbers.order_no,
        prepared.days,
        traceparent or None,
        *ranges,
        *(prepared.in_rows.get(kind, 0) for kind in NUMERIC_KINDS),
    )
    for batch in decision.taken:
        decision.answers[batch] = WriteResult(batch.record.outcome, duplicate=False, commit=numbers)
    commit = Commit(numbers, prepared.samples, prepared.latest, traceparent, whole)
    return Stored(decision.answers, commit, letters)


def _traceparent() -> str:
    """Return the context of the commit's span for those who read it on, "" when it is not recorded."""
    carrier: dict[str, str] = {}
    if trace.get_current_span().get_span_context().trace_flags.sampled:
        _propagator.inject(carrier)
    return carrier.get("traceparent", "")


async def _decide(connection: Connection, batches: Sequence[Batch]) -> Decision:
    decision = Decision(chunks=await chunks.judge(connection, batches))
    if decision.chunks is not None:
        decision.answers.update(decision.chunks.refused)
        for batch in decision.chunks.ended:
            decision.answers[batch] = WriteResult(batch.record.outcome, duplicate=True)
        batches = [batch for batch in batches if batch not in decision.answers]
    await _judge_sequences(connection, batches, decision)
    await _claim_letters(connection, batches, decision)
    await _claim_request_ids(connection, batches, decision)
    for batch in batches:
        if batch.request.identity is None and batch.request.replay is None:
            decision.answers[batch] = WriteResult(batch.record.outcome, duplicate=False)
    decision.taken = [
        decision.left.get(batch, batch)
        for batch in batches
        if isinstance(answer := decision.answers.get(batch), WriteResult) and not answer.duplicate
    ]
    return decision


async def _judge_sequences(connection: Connection, batches: Sequence[Batch], decision: Decision) -> None:
    keys = sorted({key for batch in batches if (key := batch.cursor_key) is not None})
    if not keys:
        return
    locked = await cursors.lock(connection, keys)
    known = await _known_sequences(connection, batches, locked)
    for batch in batches:
        identity, key = batch.request.identity, batch.cursor_key
        if not isinstance(identity, WriterIdentity) or key is None or key not in locked:
            continue
        cursor, place = locked[key], (key, identity.sequence)
        try:
            duplicate = cursors.judge(
                cursor, identity, batch.request.principal, batch.request.digest, known.get(place)
            )
        except DomainError as error:
            decision.answers[batch] = error
            continue
        if duplicate is None:
            cursor.last_sequence = identity.sequence
            known[place] = decision.advanced[place] = batch.record
        decision.answers[batch] = WriteResult((duplicate or batch.record).outcome, duplicate is not None)


async def _known_sequences(
    connection: Connection, batches: Sequence[Batch], locked: dict[CursorKey, Cursor]
) -> dict[tuple[CursorKey, int], Recorded]:
    repeated = [
        (key, batch.request.identity.sequence)
        for batch in batches
        if isinstance(batch.request.identity, WriterIdentity)
        and (key := batch.cursor_key) in locked
        and batch.request.identity.sequence <= locked[key].last_sequence
    ]
    return await cursors.recorded(connection, repeated) if repeated else {}


async def _claim_letters(connection: Connection, batches: Sequence[Batch], decision: Decision) -> None:
    first: dict[LetterKey, Batch] = {}
    for batch in batches:
        if (key := batch.letter_key) is not None:
            first.setdefault(key, batch)
    if not first:
        return
    claimed = await dead_letters.claim(connection, list(first.values()))
    for batch in batches:
        if (key := batch.letter_key) is not None:
            is_ours = key in claimed and first[key] is batch
            decision.answers[batch] = WriteResult(batch.record.outcome, duplicate=not is_ours)


async def _claim_request_ids(connection: Connection, batches: Sequence[Batch], decision: Decision) -> None:
    claims = [(batch, keys) for batch in batches if (keys := batch.request_keys)]
    if not claims:
        return
    # A message may have come more than once even within a batch.
    first: dict[RequestKey, tuple[Batch, int]] = {}
    wanted: dict[RequestKey, Recorded] = {}
    for batch, keys in claims:
        for place, (key, record) in enumerate(zip(keys, batch.records, strict=True)):
            first.setdefault(key, (batch, place))
            wanted.setdefault(key, record)
    now: datetime = await connection.fetchval("SELECT now()")
    known = await request_ids.claim(connection, wanted, now)
    for batch, keys in claims:
        if isinstance(batch.request.identity, MessageIdentity):
            repeated = {
                place for place, key in enumerate(keys) if key in known or first[key] != (batch, place)
            }
            decision.answers[batch] = WriteResult(batch.record.outcome, duplicate=len(repeated) == len(keys))
            if repeated:
                decision.left[batch] = batch.without(repeated)
            continue
        (key,) = keys
        record = known.get(key, wanted[key])
        try:
            request_ids.check_digest(key[2], batch.request.digest, record)
        except DomainError as error:
            decision.answers[batch] = error
        else:
            duplicate = key in known or first[key][0] is not batch
            decision.answers[batch] = WriteResult(record.outcome, duplicate)


async def _copy(connection: Connection, prepared: Prepared, numbers: CommitNumbers) -> None:
    async def chunks() -> AsyncIterator[memoryview]:
        for chunk in prepared.payload.stamped(
            instance=numbers.instance, commit_no=numbers.commit_no, order_no=numbers.order_no
        ):
            yield chunk

    await connection.copy_to_table(
        "segment",
        schema_name="telemetry",
        columns=COLUMNS,
        source=chunks(),  # type: ignore[arg-type] # Any buffer will do.
        format="binary",
    )
