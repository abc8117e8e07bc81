"""Chunks of messages: kept until their message is whole, and gone with it.

What a chunk is (new, there already, or not to be had) is decided twice by the same rules: by
`ChunkStore.check` before its batch is committed, so that its sender can be told, and in the commit
itself, under a lock of its gateway. What only the commit finds, because another chunk was faster,
is better when the batch comes again.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg

from meshkit.db import DATABASE_ERRORS, Connection, connected
from meshkit.errors import DomainError, InvalidArgument, ResourceExhausted, dependency_unavailable
from telemetry_store import request_ids
from telemetry_store.batch import Batch
from telemetry_store.requests import MessageChunk
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_TENANT_BYTES = 256 * 1024 * 1024
MAX_OPEN_MESSAGES = 64  # of a gateway
# A message that was stored is remembered like a request id of this principal.
PRINCIPAL = "chunks"
_ROW_BYTES = 100  # What a chunk takes beside its payload.
_DIGEST_BYTES = 8  # of each chunk: tells contents apart, protects nothing
_FULL_RETRY_S = 1.0
# Class of the advisory locks (class, gateway) under which a gateway's messages change.
_LOCK_CLASS = 0x63686E6B  # "chnk"
_LOCKS = 1_024

MessageKey = tuple[str, str, str]  # tenant, gateway, message id


@dataclass(frozen=True, slots=True)
class ChunkedMessage:
    """What is known of a message of which chunks have come, but their payloads.

    Attributes:
        total: how many chunks it has.
        is_array: they are arrays of its elements, not pieces of its text.
        all_or_nothing: its mode, None when its sender says none.
        received: how many have come.
        bytes: of their payloads, and what they take beside them.
    """

    total: int
    is_array: bool
    all_or_nothing: bool | None
    received: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """A message of which chunks have come, with them.

    Attributes:
        key: which message.
        message: what is known of it.
        principal: who sent the chunk that came first.
        door: which way that one came.
        arrival_us: when it came, microseconds since the epoch.
        payloads: by index, those that have come.
    """

    key: MessageKey
    message: ChunkedMessage
    principal: str
    door: str
    arrival_us: int
    payloads: Mapping[int, bytes]

    @property
    def is_whole(self) -> bool:
        """Say whether all have come."""
        return len(self.payloads) == self.message.total

    @property
    def payload(self) -> bytes:
        """Return the message, as far as it has come."""
        pieces = [self.payloads[index] for index in sorted(self.payloads)]
        if not self.message.is_array:
            return b"".join(pieces)
        # Arrays without spaces around them, as they were written when they came.
        return b"[" + b",".join(piece[1:-1] for piece in pieces if len(piece) > 2) + b"]"

    @property
    def missing(self) -> list[int]:
        """Return the indexes of those that have not come."""
        return [index for index in range(self.message.total) if index not in self.payloads]

    @property
    def digest(self) -> bytes:
        """Return what tells whether a chunk that comes later is one of these."""
        return b"".join(map(_digest, (self.payloads[index] for index in sorted(self.payloads))))


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the tables hold of some messages and all of their tenants' storage."""

    messages: Mapping[MessageKey, ChunkedMessage]
    contents: Mapping[tuple[MessageKey, int], bytes]
    assembled: Mapping[MessageKey, bytes]
    open: Mapping[tuple[str, str], int]
    bytes: Mapping[str, int]


class Ledger:
    """What the tables would hold once chunks were added to them."""

    def __init__(self, stored: _Stored) -> None:
        self._messages = dict(stored.messages)
        self._contents = dict(stored.contents)
        self._assembled = stored.assembled
        self._open = Counter(stored.open)
        self._bytes = Counter(stored.bytes)

    def add(self, tenant: str, chunk: MessageChunk) -> bool:
        """Add a chunk; says whether it is new.

        Raises:
            InvalidArgument: CHUNK_INVALID, it never can be added.
            ResourceExhausted: CHUNK_STORAGE_FULL.
        """
        key = (tenant, chunk.gateway_id, chunk.message_id)
        digest = _digest(chunk.payload)
        message = self._messages.get(key)
        if message is None and key in self._assembled:
            _require_same(chunk, digest, self._assembled[key])
            return False
        if message is not None:
            _require_agreement(chunk, message)
            known = self._contents.get((key, chunk.index))
            if known is not None:
                if known != digest:
                    raise _invalid(chunk, f"chunk {chunk.index} came before with other content")
                return False
        self._put(key, chunk, digest, message)
        return True

    def received(self, key: MessageKey) -> int:
        """Return how many chunks of a message there are, 0 when it is not there."""
        message = self._messages.get(key)
        return message.received if message is not None else 0

    def _put(
        self, key: MessageKey, chunk: MessageChunk, digest: bytes, message: ChunkedMessage | None
    ) -> None:
        size = len(chunk.payload) + _ROW_BYTES
        if message is None:
            message = ChunkedMessage(chunk.total, chunk.is_array, chunk.all_or_nothing, received=0, bytes=0)
            if self._open[key[:2]] >= MAX_OPEN_MESSAGES:
                raise _full("gateway_open_messages", MAX_OPEN_MESSAGES, self._open[key[:2]])
            opened = 1
        else:
            opened = 0
        if message.bytes + size > MAX_MESSAGE_BYTES:
            raise _invalid(chunk, f"the message has more than {MAX_MESSAGE_BYTES} bytes")
        if self._bytes[key[0]] + size > MAX_TENANT_BYTES:
            raise _full("tenant_chunk_bytes", MAX_TENANT_BYTES, self._bytes[key[0]])
        self._messages[key] = replace(message, received=message.received + 1, bytes=message.bytes + size)
        self._contents[key, chunk.index] = digest
        self._open[key[:2]] += opened
        self._bytes[key[0]] += size


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()[:_DIGEST_BYTES]


def _require_agreement(chunk: MessageChunk, message: ChunkedMessage) -> None:
    if chunk.total != message.total:
        raise _invalid(chunk, f"its total is {chunk.total}, that of the chunks before {message.total}")
    if chunk.is_array != message.is_array:
        raise _invalid(chunk, "some of its chunks are pieces of text, others arrays")
    if chunk.all_or_nothing != message.all_or_nothing:
        raise _invalid(chunk, "its chunks have different modes")


def _require_same(chunk: MessageChunk, digest: bytes, assembled: bytes) -> None:
    start = chunk.index * _DIGEST_BYTES
    total = len(assembled) // _DIGEST_BYTES
    if chunk.total != total or assembled[start : start + _DIGEST_BYTES] != digest:
        raise _invalid(
            chunk, "a message of this id was stored within the last hour with other content; use a new id"
        )


def _invalid(chunk: MessageChunk, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"message {chunk.message_id!r} of {chunk.gateway_id!r}: {why}",
        reason=ErrorReason.ERROR_REASON_CHUNK_INVALID,
    )


def _full(name: str, limit: int, used: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"{used} {name.replace('_', ' ')} are in use of {limit}; send the chunk again later",
        reason=ErrorReason.ERROR_REASON_CHUNK_STORAGE_FULL,
        metadata={"limit_name": name, "limit": str(limit), "used": str(used)},
        retry_after_s=_FULL_RETRY_S,
    )


@dataclass(frozen=True, slots=True)
class GroupChunks:
    """What the tables hold of the chunks of a group's batches, whose gateways are locked."""

    stored: _Stored
    refused: Mapping[Batch, DomainError]
    ended: frozenset[Batch]


async def judge(connection: Connection, batches: Sequence[Batch]) -> GroupChunks | None:
    """Lock the gateways of a group's chunks and say which batches cannot be committed now.

    Args:
        connection: in a transaction that has locked nothing yet.
        batches: in arrival order.

    Returns:
        With `refused`: batches with a chunk that cannot be had, and why they are better when they come
        again; and `ended`: those that end a message which is no longer as they have found it. None:
        no batch has to do with chunks.
    """
    chunks = [(batch.request.tenant, chunk) for batch in batches for chunk in batch.chunks]
    ends = [
        (batch, (batch.request.tenant, end.gateway_id, end.message_id))
        for batch in batches
        if (end := batch.request.end) is not None
    ]
    if not chunks and not ends:
        return None
    keys = {(tenant, chunk.gateway_id, chunk.message_id) for tenant, chunk in chunks}
    keys.update(key for _, key in ends)
    await _lock(connection, keys)
    stored = await _load(connection, keys, chunks)
    ledger = Ledger(stored)
    refused: dict[Batch, DomainError] = {}
    for batch in batches:
        try:
            for chunk in batch.chunks:
                ledger.add(batch.request.tenant, chunk)
        except ResourceExhausted as error:
            refused[batch] = error
        except InvalidArgument:
            refused[batch] = dependency_unavailable("postgresql", retry_after_s=0)
    ended: set[Batch] = set()
    left = set(keys)
    for batch, key in ends:
        assert batch.request.end is not None  # noqa: S101 - as it was chosen
        if key in left and ledger.received(key) == batch.request.end.received:
            left.remove(key)
        else:
            ended.add(batch)
    return GroupChunks(stored, refused, frozenset(ended))


async def store(connection: Connection, group: GroupChunks, taken: Sequence[Batch]) -> list[MessageKey]:
    """Keep the chunks of batches that are committed, and remove the messages that they end.

    Args:
        connection: in the transaction of `judge`.
        group: as judged.
        taken: of its batches, those that are committed, none of which was refused.

    Returns:
        Messages that have become whole.
    """
    ledger = Ledger(group.stored)
    new = [
        (batch, chunk) for batch in taken for chunk in batch.chunks if ledger.add(batch.request.tenant, chunk)
    ]
    whole = await _insert(connection, new) if new else []
    ends = [
        (batch.request.tenant, end.gateway_id, end.message_id)
        for batch in taken
        if (end := batch.request.end) is not None
    ]
    if ends:
        await _delete(connection, ends)
    return whole


async def _lock(connection: Connection, keys: Iterable[MessageKey]) -> None:
    # All processes lock in this order, and before anything else, so none waits for one that waits for it.
    locks = sorted(
        {
            int.from_bytes(hashlib.sha256(f"{tenant}/{gateway_id}".encode()).digest()[:4], "little") % _LOCKS
            for tenant, gateway_id, _ in keys
        }
    )
    await connection.execute(
        "SELECT pg_advisory_xact_lock($1, gateway) FROM unnest($2::integer[]) AS gateway", _LOCK_CLASS, locks
    )


def _columns(keys: Iterable[MessageKey]) -> tuple[list[str], list[str], list[str]]:
    listed = list(keys)
    return [key[0] for key in listed], [key[1] for key in listed], [key[2] for key in listed]


async def _load(
    connection: Connection, keys: Iterable[MessageKey], chunks: Sequence[tuple[str, MessageChunk]]
) -> _Stored:
    columns = _columns(keys)
    messages = await connection.fetch(
        """
        SELECT tenant_id, gateway_id, message_id, total, is_array, all_or_nothing, received, bytes
        FROM telemetry.chunked_message
        JOIN unnest($1::text[], $2::text[], $3::text[]) AS wanted (tenant_id, gateway_id, message_id)
            USING (tenant_id, gateway_id, message_id)
        """,
        *columns,
    )
    contents = await connection.fetch(
        """
        SELECT tenant_id, gateway_id, message_id, chunk_index, sha256(payload) AS digest
        FROM telemetry.message_chunk
        JOIN unnest($1::text[], $2::text[], $3::text[], $4::integer[])
            AS wanted (tenant_id, gateway_id, message_id, chunk_index)
            USING (tenant_id, gateway_id, message_id, chunk_index)
        """,
        *_columns((tenant, chunk.gateway_id, chunk.message_id) for tenant, chunk in chunks),
        [chunk.index for _, chunk in chunks],
    )
    used = await connection.fetch(
        """
        SELECT tenant_id, gateway_id, count(*) AS messages, sum(bytes)::bigint AS bytes
        FROM telemetry.chunked_message
        WHERE tenant_id = ANY ($1)
        GROUP BY tenant_id, gateway_id
        """,
        sorted({tenant for tenant, _ in chunks}),
    )
    remembered = await request_ids.find(connection, [_request_key(key) for key in zip(*columns, strict=True)])
    tenant_bytes: Counter[str] = Counter()
    for row in used:
        tenant_bytes[row["tenant_id"]] += row["bytes"]
    return _Stored(
        messages={
            _key(row): ChunkedMessage(
                row["total"], row["is_array"], row["all_or_nothing"], row["received"], row["bytes"]
            )
            for row in messages
        },
        contents={(_key(row), row["chunk_index"]): row["digest"][:_DIGEST_BYTES] for row in contents},
        assembled={_message_key(key): record.digest for key, record in remembered.items()},
        open={(row["tenant_id"], row["gateway_id"]): row["messages"] for row in used},
        bytes=tenant_bytes,
    )


def _key(row: asyncpg.Record) -> MessageKey:
    return row["tenant_id"], row["gateway_id"], row["message_id"]


def request_id(gateway_id: str, message_id: str) -> str:
    """Return the request id under which a message that was stored is remembered."""
    return f"{gateway_id}/{message_id}"


def _request_key(key: MessageKey) -> request_ids.RequestKey:
    return key[0], PRINCIPAL, request_id(key[1], key[2])


def _message_key(key: request_ids.RequestKey) -> MessageKey:
    gateway_id, _, message_id = key[2].partition("/")
    return key[0], gateway_id, message_id


async def _insert(connection: Connection, new: Sequence[tuple[Batch, MessageChunk]]) -> list[MessageKey]:
    """Insert chunks with their messages; returns the messages that have become whole."""
    by_message: dict[MessageKey, list[tuple[Batch, MessageChunk]]] = {}
    for batch, chunk in new:
        key = (batch.request.tenant, chunk.gateway_id, chunk.message_id)
        by_message.setdefault(key, []).append((batch, chunk))
    firsts = [came[0] for came in by_message.values()]
    rows = await connection.fetch(
        """
        INSERT INTO telemetry.chunked_message AS kept
            (tenant_id, gateway_id, message_id, total, is_array, all_or_nothing, principal, door,
            arrival_time, received, bytes)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::boolean[], $6::boolean[],
            $7::text[], $8::text[], $9::bigint[], $10::integer[], $11::bigint[])
        ON CONFLICT (tenant_id, gateway_id, message_id) DO UPDATE
        SET received = kept.received + excluded.received, bytes = kept.bytes + excluded.bytes,
            last_received_at = now()
        RETURNING tenant_id, gateway_id, message_id, received = total AS is_whole
        """,
        *_columns(by_message),
        [chunk.total for _, chunk in firsts],
        [chunk.is_array for _, chunk in firsts],
        [chunk.all_or_nothing for _, chunk in firsts],
        [batch.request.principal for batch, _ in firsts],
        [batch.request.door for batch, _ in firsts],
        [chunk.arrival_us for _, chunk in firsts],
        [len(came) for came in by_message.values()],
        [sum(len(chunk.payload) + _ROW_BYTES for _, chunk in came) for came in by_message.values()],
    )
    await connection.copy_records_to_table(
        "message_chunk",
        schema_name="telemetry",
        columns=("tenant_id", "gateway_id", "message_id", "chunk_index", "payload"),
        records=[(*key, chunk.index, chunk.payload) for key, came in by_message.items() for _, chunk in came],
    )
    return [_key(row) for row in rows if row["is_whole"]]


async def _delete(connection: Connection, keys: Sequence[MessageKey]) -> None:
    for table in ("message_chunk", "chunked_message"):
        await connection.execute(
            f"""
            DELETE FROM telemetry.{table} AS kept
            USING unnest($1::text[], $2::text[], $3::text[]) AS gone (tenant_id, gateway_id, message_id)
            WHERE kept.tenant_id = gone.tenant_id AND kept.gateway_id = gone.gateway_id
              AND kept.message_id = gone.message_id
            """,  # noqa: S608 - one of two tables  # nosec B608
            *_columns(keys),
        )


class ChunkStore:
    """Looks after chunks outside of commits.

    Args:
        pool: of the ingest role.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def check(self, tenant: str, chunks: Sequence[MessageChunk]) -> list[DomainError | None]:
        """Say of each chunk, in their order, why it cannot be kept, None when it can.

        Returns:
            InvalidArgument CHUNK_INVALID when it never can be, ResourceExhausted CHUNK_STORAGE_FULL.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        keys = {(tenant, chunk.gateway_id, chunk.message_id) for chunk in chunks}
        async with connected(self._pool) as connection:
            ledger = Ledger(await _load(connection, keys, [(tenant, chunk) for chunk in chunks]))
        found: list[DomainError | None] = []
        for chunk in chunks:
            try:
                ledger.add(tenant, chunk)
            except (InvalidArgument, ResourceExhausted) as error:
                found.append(error)
            else:
                found.append(None)
        return found

    async def read(self, key: MessageKey) -> Chunks | None:
        """Return a message with the chunks that have come, None when it is gone.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                row = await connection.fetchrow(
                    """
                    SELECT total, is_array, all_or_nothing, received, bytes, principal, door, arrival_time
                    FROM telemetry.chunked_message
                    WHERE tenant_id = $1 AND gateway_id = $2 AND message_id = $3
                    """,
                    *key,
                )
                chunks = await connection.fetch(
                    """
                    SELECT chunk_index, payload FROM telemetry.message_chunk
                    WHERE tenant_id = $1 AND gateway_id = $2 AND message_id = $3
                    """,
                    *key,
                )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        if row is None:
            return None
        message = ChunkedMessage(
            row["total"], row["is_array"], row["all_or_nothing"], row["received"], row["bytes"]
        )
        return Chunks(
            key,
            message,
            row["principal"],
            row["door"],
            row["arrival_time"],
            {chunk["chunk_index"]: chunk["payload"] for chunk in chunks},
        )

    async def due(self, *, whole_for_s: float, expire_s: float, most: int) -> list[MessageKey]:
        """Return messages that have been whole for so long, or began so long ago and are not.

        Args:
            whole_for_s: seconds since the last chunk came.
            expire_s: seconds since the first one came.
            most: how many, the oldest ones.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            rows = await connection.fetch(
                """
                SELECT tenant_id, gateway_id, message_id
                FROM telemetry.chunked_message
                WHERE CASE WHEN received = total THEN last_received_at < now() - $1 * interval '1 second'
                           ELSE first_received_at < now() - $2 * interval '1 second' END
                ORDER BY first_received_at
                LIMIT $3
                """,
                whole_for_s,
                expire_s,
                most,
            )
        return [_key(row) for row in rows]
