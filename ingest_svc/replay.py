"""Dead letters on their way back: each through the path that live telemetry takes, and out of its letter."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from opentelemetry.trace import SpanContext

from ingest_svc import conversion
from ingest_svc.columns import SentColumns
from ingest_svc.device_message import DeviceMessage
from ingest_svc.intake import Door, Intake, Origin
from ingest_svc.message_path import MessagePath, MessageWriter
from ingest_svc.outcome import INTERNAL, Outcome, RefusedContent, Why, reason_name
from ingest_svc.series_table import SeriesTable
from meshkit.errors import FailedPrecondition, PermissionDenied, ResourceExhausted, Unavailable
from meshkit.identity import Principal, PrincipalKind, scope_of_device
from meshkit.scope import Scope
from telemetry_store.dead_letter_store import KeptLetter, LetterContent
from telemetry_store.requests import DeadLetter, PayloadFormat, Replay, WriteRequest, WriteResult
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1.dead_letter_service_pb2 import RefusedBatch
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_MOST_BYTES = 8 * 1024 * 1024  # of payloads in memory at a time
MOST_FAILURES = 100  # told of a call


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a letter stays."""

    dead_letter_id: int
    why: Why


@dataclass(slots=True)
class Replayed:
    """What became of letters.

    Attributes:
        gone: how many are stored whole, and gone.
        failed: how many stay.
        skipped: how many others were faster to replay or purge.
        stored_samples: of all.
        failures: why letters stay; the first 100.
    """

    gone: int = 0
    failed: int = 0
    skipped: int = 0
    stored_samples: int = 0
    failures: list[Failure] = field(default_factory=list)


class Letters(Protocol):
    """Where dead letters are read."""

    async def contents(self, tenant: str, ids: Sequence[int]) -> Mapping[int, LetterContent]:
        """Return what letters hold, by id; of those that exist."""
        ...

    async def room_since_us(self) -> int:
        """Return from which event time on samples can be stored without a backfill."""
        ...


class KeyScopes(Protocol):
    """Knows which devices API keys are bound to."""

    async def of_key(self, tenant: str, key_id: str) -> Scope | None:
        """Return a key's scope, None when it is bound to no devices.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


class Replays:
    """Replays dead letters.

    Whoever replays has more rights than those who sent: what a sender was bound to holds all the same.

    Args:
        letters: reads them.
        key_scopes: tells what senders were bound to.
        intake: makes of batches what the writer takes.
        messages: likewise of messages of devices.
        writer: commits.
    """

    def __init__(
        self,
        *,
        letters: Letters,
        key_scopes: KeyScopes,
        intake: Intake,
        messages: MessagePath,
        writer: MessageWriter,
    ) -> None:
        self._letters = letters
        self._key_scopes = key_scopes
        self._intake = intake
        self._messages = messages
        self._writer = writer

    async def replay(
        self,
        principal: Principal,
        letters: Sequence[KeptLetter],
        *,
        backfill_id: str = "",
        span: SpanContext | None = None,
    ) -> Replayed:
        """Try letters again, in their order, and return once all that is stored of them is durable.

        Args:
            principal: who does it; of the letters' tenant.
            letters: the oldest first, so that of equal times the later one's value counts.
            backfill_id: its range replaces the live window; "": each letter's own, if it has one.
            span: of the request.

        Raises:
            FailedPrecondition: BACKFILL_UNKNOWN, of `backfill_id`.
            PermissionDenied: a backfill, without the permission to load one.
            Unavailable, ResourceExhausted: some letters may be replayed, others not.
        """
        if backfill_id:
            await self._intake.window(Origin(principal, None, span, Door.REPLAY), backfill_id, 0)
        earliest_us = await self._letters.room_since_us()
        replayed = Replayed()
        scopes = await self._scopes(principal.tenant, {letter.principal for letter in letters})
        for some in _chunks(letters):
            contents = await self._letters.contents(
                principal.tenant, [letter.dead_letter_id for letter in some]
            )
            written: list[tuple[KeptLetter, asyncio.Future[WriteResult]]] = []
            for letter in some:
                content = contents.get(letter.dead_letter_id)
                if content is None:
                    replayed.skipped += 1
                    continue
                replay = Replay(letter.dead_letter_id, content.replay_count)
                scope = scopes[letter.principal]
                origin = Origin(principal, None, span, Door.REPLAY, replay, earliest_us, scope)
                request = await self._request(origin, letter, content, backfill_id or letter.backfill_id)
                written.append((letter, self._writer.submit(request)))
            results = await asyncio.gather(*(answer for _, answer in written))
            for (letter, _), result in zip(written, results, strict=True):
                _count(replayed, letter, result)
        return replayed

    async def _scopes(self, tenant: str, senders: Iterable[str]) -> dict[str, Scope | None]:
        """Return what senders are bound to, by the names of their principals."""
        scopes: dict[str, Scope | None] = {}
        for sender in senders:
            kind, _, subject = sender.partition(":")
            scopes[sender] = scope_of_device(subject) if kind == PrincipalKind.DEVICE else None
            if kind == PrincipalKind.API_KEY:
                scopes[sender] = await self._key_scopes.of_key(tenant, subject)
        return scopes

    async def _request(
        self, origin: Origin, letter: KeptLetter, content: LetterContent, backfill_id: str
    ) -> WriteRequest:
        try:
            if letter.payload_format is PayloadFormat.MESSAGE:
                window = await self._intake.window(origin, backfill_id, letter.received_us)
                message = DeviceMessage(content.device_ids[0], content.payload, letter.received_us)
                return await self._messages.replayed(message, origin, window)
            if letter.payload_format is not PayloadFormat.NONE:
                return await self._batch_request(origin, letter, content.payload, backfill_id)
        except (Unavailable, ResourceExhausted, PermissionDenied):
            raise
        except FailedPrecondition as error:
            return _stays(origin, letter, content, (error.reason, error.message))
        except Exception:
            _log.exception("dead letter failed", dead_letter=letter.dead_letter_id)
            return _stays(origin, letter, content, INTERNAL)
        return _stays(origin, letter, content, (_reason(letter.reason), letter.message))

    async def _batch_request(
        self, origin: Origin, letter: KeptLetter, payload: bytes, backfill_id: str
    ) -> WriteRequest:
        refused = RefusedBatch.FromString(payload)
        batch = ingest_pb2.Batch(
            mode=refused.mode,
            readings=refused.readings,
            columns=refused.columns if refused.HasField("columns") else None,
        )
        all_or_nothing = refused.mode == ingest_pb2.MODE_ALL_OR_NOTHING
        content = conversion.to_content(batch)
        if isinstance(content, RefusedContent):
            return self._intake.refuse(
                origin, content, backfill_id=backfill_id, received_us=letter.received_us
            )
        if isinstance(content, SentColumns):
            series = SeriesTable()
            series.define(conversion.to_definitions(refused.series_defs))
            return await self._intake.take_columns(
                origin,
                content,
                series,
                all_or_nothing=all_or_nothing,
                backfill_id=backfill_id,
                received_us=letter.received_us,
            )
        return await self._intake.take_readings(
            origin,
            content,
            all_or_nothing=all_or_nothing,
            backfill_id=backfill_id,
            received_us=letter.received_us,
        )


def _chunks(letters: Sequence[KeptLetter]) -> Iterator[list[KeptLetter]]:
    """Yield letters, as many at a time as may be in memory together."""
    chunk: list[KeptLetter] = []
    size = 0
    for letter in letters:
        if chunk and size + letter.payload_bytes > _MOST_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(letter)
        size += letter.payload_bytes
    if chunk:
        yield chunk


def _stays(origin: Origin, letter: KeptLetter, content: LetterContent, why: Why) -> WriteRequest:
    """Return the request that stores nothing, and notes that the letter was tried."""
    reason, message = why
    outcome = Outcome(refused_samples=letter.sample_count, reason=reason, message=message)
    recorded = conversion.to_result(outcome, 0).SerializeToString()
    kept = DeadLetter(
        device_ids=content.device_ids,
        principal=letter.principal,
        received_us=letter.received_us,
        reason=reason_name(reason),
        message=message,
        payload=content.payload,
        payload_format=letter.payload_format,
        sample_count=letter.sample_count,
        backfill_id=letter.backfill_id,
        trace_id=letter.trace_id,
    )
    return WriteRequest(
        tenant=origin.principal.tenant,
        principal=origin.principal.name,
        identity=None,
        digest=b"",
        samples=[],
        outcome=recorded,
        refused_outcome=recorded,
        span=origin.span,
        door=origin.door,
        dead_letters=[kept],
        refused_dead_letters=lambda: (kept,),
        replay=origin.replay,
    )


def _count(replayed: Replayed, letter: KeptLetter, result: WriteResult) -> None:
    if result.duplicate:
        replayed.skipped += 1
        return
    told = ingest_pb2.BatchResult.FromString(result.outcome)
    replayed.stored_samples += told.stored_samples
    if not told.reason and not told.refused_samples:
        replayed.gone += 1
        return
    replayed.failed += 1
    if len(replayed.failures) < MOST_FAILURES:
        why = (told.reason, told.message)
        if not told.reason and told.refusals:
            why = (told.refusals[0].reason, told.refusals[0].message)
        replayed.failures.append(Failure(letter.dead_letter_id, why))


def _reason(name: str) -> ErrorReason.ValueType:
    return ErrorReason.Value(f"ERROR_REASON_{name}")
