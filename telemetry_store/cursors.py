"""Writer cursors: which sequence a writer may commit next, and what its last ones got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meshkit.db import Connection
from meshkit.errors import DomainError, FailedPrecondition, InvalidArgument, PermissionDenied, Unavailable
from telemetry_store.requests import OpenedCursor, WriterIdentity
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

LOCK_WAIT_S = 2.0  # For a cursor that is locked elsewhere: many times a commit.
_LOCKED_RETRY_S = 1.0
OUTCOMES_KEPT = 256  # as the constraint writer_outcome_slot has it; at least the batches in flight

CursorKey = tuple[str, str]  # tenant, writer id


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was committed under an identity: the content's digest and the answer."""

    digest: bytes
    outcome: bytes


@dataclass(slots=True)
class Cursor:
    """A locked cursor, going forward as a group's batches are taken."""

    principal: str
    epoch: int
    last_sequence: int


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """A client opens a writer; two that look alike are still two.

    Attributes:
        key: of the writer.
        principal: who opens it.
        session_id: the client's run, noted as the one that opened the writer last.
        resume: only if that is this run already, or nobody has opened the writer.
    """

    key: CursorKey
    principal: str
    session_id: str
    resume: bool


OpenResult = OpenedCursor | DomainError


def judge(
    cursor: Cursor, identity: WriterIdentity, principal: str, digest: bytes, recorded: Recorded | None
) -> Recorded | None:
    """Say what a writer's batch is.

    Args:
        cursor: the writer's, locked.
        identity: the batch's.
        principal: who sends it.
        digest: of its content.
        recorded: what is known of its sequence, None when nothing is.

    Returns:
        None when the batch is the next one; the record when it is a duplicate.

    Raises:
        PermissionDenied: the writer is another principal's.
        FailedPrecondition: FENCED, SEQUENCE_GAP or OUTCOME_EXPIRED.
        InvalidArgument: SEQUENCE_REUSED.
    """
    if cursor.principal != principal:
        raise not_owned(identity.writer_id)
    if identity.epoch is not None and identity.epoch != cursor.epoch:
        raise fenced(identity.writer_id)
    expected = cursor.last_sequence + 1
    if identity.sequence > expected:
        raise FailedPrecondition(
            f"sequence {expected} is missing before {identity.sequence}; send it first",
            reason=ErrorReason.ERROR_REASON_SEQUENCE_GAP,
            metadata={"expected": str(expected)},
        )
    if identity.sequence == expected:
        return None
    if recorded is None:
        raise FailedPrecondition(
            f"sequence {identity.sequence} was consumed, but its outcome is no longer kept; "
            f"go on with {expected}",
            reason=ErrorReason.ERROR_REASON_OUTCOME_EXPIRED,
        )
    if recorded.digest != digest:
        raise InvalidArgument(
            f"sequence {identity.sequence} was used with other content; a new batch needs {expected}",
            reason=ErrorReason.ERROR_REASON_SEQUENCE_REUSED,
            metadata={"sequence": str(identity.sequence)},
        )
    return recorded


def not_owned(writer_id: str) -> DomainError:
    """Return the error for a writer that another principal used first."""
    return PermissionDenied(
        f"writer {writer_id!r} belongs to another principal; choose another writer id",
        reason=ErrorReason.ERROR_REASON_WRITER_NOT_OWNED,
    )


def fenced(writer_id: str) -> DomainError:
    """Return the error for a stream whose writer another one has opened since."""
    return FailedPrecondition(
        f"another stream of writer {writer_id!r} took over; open again with resume only",
        reason=ErrorReason.ERROR_REASON_FENCED,
    )


def taken_over(writer_id: str) -> DomainError:
    """Return the error for a client that resumes a writer which another one has opened since."""
    return FailedPrecondition(
        f"another client has opened writer {writer_id!r} since, and has it now",
        reason=ErrorReason.ERROR_REASON_FENCED,
    )


def locked_elsewhere(writer_id: str) -> DomainError:
    """Return the error for a writer whose cursor stays locked by another process."""
    return Unavailable(
        f"writer {writer_id!r} is being committed by another process; retry",
        reason=ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "postgresql"},
        retry_after_s=_LOCKED_RETRY_S,
    )


async def ensure(connection: Connection, owners: Mapping[CursorKey, str]) -> None:
    """Insert absent cursors, each bound to its principal; to be run outside of a transaction.

    FOR UPDATE locks nothing for an absent row, and within a transaction a second
    process would wait for the first one's whole commit.
    """
    keys = sorted(owners)
    await connection.execute(
        """
        INSERT INTO telemetry.writer_cursor (tenant_id, writer_id, principal)
        SELECT tenant_id, writer_id, principal
        FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant_id, writer_id, principal)
        ON CONFLICT DO NOTHING
        """,
        [tenant for tenant, _ in keys],
        [writer_id for _, writer_id in keys],
        [owners[key] for key in keys],
    )


async def lock(connection: Connection, keys: Sequence[CursorKey]) -> dict[CursorKey, Cursor]:
    """Lock those cursors that nobody else holds until the transaction ends."""
    rows = await connection.fetch(
        """
        SELECT held.tenant_id, held.writer_id, held.principal, held.epoch, held.last_sequence
        FROM telemetry.writer_cursor AS held
        JOIN unnest($1::text[], $2::text[]) AS wanted (tenant_id, writer_id) USING (tenant_id, writer_id)
        ORDER BY held.tenant_id, held.writer_id
        FOR UPDATE OF held SKIP LOCKED
        """,
        [tenant for tenant, _ in keys],
        [writer_id for _, writer_id in keys],
    )
    return {
        (row["tenant_id"], row["writer_id"]): Cursor(row["principal"], row["epoch"], row["last_sequence"])
        for row in rows
    }


async def recorded(
    connection: Connection, sequences: Sequence[tuple[CursorKey, int]]
) -> dict[tuple[CursorKey, int], Recorded]:
    """Return what is kept of these sequences of locked cursors."""
    rows = await connection.fetch(
        """
        SELECT kept.tenant_id, kept.writer_id, kept.sequence, kept.digest, kept.outcome
        FROM telemetry.writer_outcome AS kept
        JOIN unnest($1::text[], $2::text[], $3::bigint[]) AS wanted (tenant_id, writer_id, sequence)
          ON kept.tenant_id = wanted.tenant_id AND kept.writer_id = wanted.writer_id
         AND kept.slot = wanted.sequence % 256 AND kept.sequence = wanted.sequence
        """,
        [tenant for (tenant, _), _ in sequences],
        [writer_id for (_, writer_id), _ in sequences],
        [sequence for _, sequence in sequences],
    )
    return {
        ((row["tenant_id"], row["writer_id"]), row["sequence"]): Recorded(row["digest"], row["outcome"])
        for row in rows
    }


async def advance(connection: Connection, taken: Mapping[tuple[CursorKey, int], Recorded]) -> None:
    """Move locked cursors to their last sequence taken, and record the outcomes.

    Args:
        connection: in the transaction that locked them.
        taken: records by cursor and sequence, ascending per cursor.
    """
    last = dict(taken.keys())
    await connection.execute(
        """
        UPDATE telemetry.writer_cursor AS held
        SET last_sequence = taken.sequence
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS taken (tenant_id, writer_id, sequence)
        WHERE held.tenant_id = taken.tenant_id AND held.writer_id = taken.writer_id
        """,
        [tenant for tenant, _ in last],
        [writer_id for _, writer_id in last],
        list(last.values()),
    )
    # One statement may touch a slot of the ring once only.
    ring = {(key, sequence % OUTCOMES_KEPT): sequence for key, sequence in taken}
    kept = [(key, sequence) for (key, _), sequence in ring.items()]
    await connection.execute(
        """
        INSERT INTO telemetry.writer_outcome (tenant_id, writer_id, slot, sequence, digest, outcome)
        SELECT tenant_id, writer_id, sequence % 256, sequence, digest, outcome
        FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[], $5::bytea[])
            AS taken (tenant_id, writer_id, sequence, digest, outcome)
        ON CONFLICT (tenant_id, writer_id, slot) DO UPDATE
        SET sequence = excluded.sequence, digest = excluded.digest, outcome = excluded.outcome,
            recorded_at = excluded.recorded_at
        """,
        [tenant for (tenant, _), _ in kept],
        [writer_id for (_, writer_id), _ in kept],
        [sequence for _, sequence in kept],
        [taken[entry].digest for entry in kept],
        [taken[entry].outcome for entry in kept],
    )


async def open_cursors(
    connection: Connection, openings: Sequence[Opening], *, wait: bool
) -> dict[Opening, OpenResult]:
    """Raise the epochs of writers under their locks, which fences their older streams.

    Args:
        connection: outside of a transaction.
        openings: each of another writer.
        wait: for locks that others hold, `LOCK_WAIT_S` at most; several openings that wait may
            wait for one another.

    Returns:
        The place of each writer, or FENCED when another run has opened it since, whose streams
        go on. Nothing of writers of another principal and, unless waiting, of those locked.

    Raises:
        asyncpg.LockNotAvailableError: waited for too long; nothing changed.
    """
    await ensure(connection, {opening.key: opening.principal for opening in openings})
    if not wait:
        return await _raise_epochs(connection, openings, locked="SKIP LOCKED")
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'")
        return await _raise_epochs(connection, openings, locked="")


async def _raise_epochs(
    connection: Connection, openings: Sequence[Opening], *, locked: Literal["", "SKIP LOCKED"]
) -> dict[Opening, OpenResult]:
    # One statement, so that what it asks and what it does are under the same lock.
    rows = await connection.fetch(
        f"""
        WITH locked AS (
            SELECT tenant_id, writer_id, wanted.session_id, wanted.resume
            FROM telemetry.writer_cursor AS held
            JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bool[])
                AS wanted (tenant_id, writer_id, principal, session_id, resume)
                USING (tenant_id, writer_id)
            WHERE held.principal = wanted.principal
            FOR UPDATE OF held {locked}
        )
        UPDATE telemetry.writer_cursor AS held
        SET session_id = CASE
                WHEN locked.resume AND held.epoch > 0 THEN held.session_id
                ELSE locked.session_id
            END,
            epoch = held.epoch + CASE
                WHEN locked.resume AND held.epoch > 0 AND held.session_id <> locked.session_id THEN 0
                ELSE 1
            END
        FROM locked
        WHERE held.tenant_id = locked.tenant_id AND held.writer_id = locked.writer_id
        RETURNING held.tenant_id, held.writer_id, held.epoch, held.last_sequence,
            held.session_id = locked.session_id AS is_ours
        """,  # noqa: S608 - one of two clauses  # nosec B608
        [opening.key[0] for opening in openings],
        [opening.key[1] for opening in openings],
        [opening.principal for opening in openings],
        [opening.session_id for opening in openings],
        [opening.resume for opening in openings],
    )
    by_key = {opening.key: opening for opening in openings}
    return {
        by_key[row["tenant_id"], row["writer_id"]]: OpenedCursor(row["epoch"], row["last_sequence"])
        if row["is_ours"]
        else taken_over(row["writer_id"])
        for row in rows
    }
