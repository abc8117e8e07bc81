"""What is used of limits, counted for all processes together."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

import asyncpg

from meshkit.db import DATABASE_ERRORS
from meshkit.errors import dependency_unavailable
from telemetry_store.ingest_policies import SubjectKind

# How long a process may be silent until what it held is free again.
ALIVE_FOR = timedelta(seconds=5)
_MOST_USED = 1_000


class Measure(IntEnum):
    """What of a subject is limited; the first two fill again with time, the others when something ends."""

    SAMPLES_PER_SECOND = 1
    BYTES_PER_SECOND = 2
    STREAMS = 3
    INFLIGHT_BYTES = 4
    CONNECTIONS = 5


class LimitKey(NamedTuple):
    """One limit of one subject; `subject` is "" for the tenant itself."""

    tenant: str
    kind: SubjectKind
    subject: str
    measure: Measure

    @property
    def name(self) -> str:
        """Return the limit's name, such as "device_samples_per_second"."""
        return f"{self.kind.name}_{self.measure.name}".lower()


@dataclass(frozen=True, slots=True)
class TokenAsk:
    """What a process wants of a token bucket, in samples or bytes.

    Attributes:
        key: the bucket.
        rate: that it fills with, per second.
        returned: of what was taken before.
        needed: let in whole, on credit, as long as the bucket holds anything.
        wanted: with it, at least as much.
    """

    key: LimitKey
    rate: float
    returned: float
    needed: float
    wanted: float


class TokenGrant(NamedTuple):
    """What it got; `tokens` are left, below 0 when it owes, `used` were taken in about the last second."""

    granted: float
    tokens: float
    used: float


@dataclass(frozen=True, slots=True)
class CapacityAsk:
    """How much a process wants to use at once from now on, of at most `limit` for all."""

    key: LimitKey
    limit: int
    wanted: int


class CapacityGrant(NamedTuple):
    """How much it may; `used` is what all hold, it among them."""

    granted: int
    used: int


class Usage(NamedTuple):
    """What is used of one limit now."""

    key: LimitKey
    used: int


class LimitStore:
    """Counts for one process.

    Args:
        pool: of the ingest role.
        holder: names the process, another one at each start.
    """

    def __init__(self, *, pool: asyncpg.Pool, holder: UUID) -> None:
        self._pool = pool
        self._holder = holder

    async def take_tokens(self, asks: Sequence[TokenAsk]) -> list[TokenGrant]:
        """Take tokens and give others back; answers in the order asked.

        Args:
            asks: of distinct buckets.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE; something may have been taken.
        """
        try:
            rows = await self._pool.fetch(
                """
                SELECT granted, tokens, used
                FROM telemetry.take_tokens($1, $2, $3, $4, $5, $6, $7, $8)
                ORDER BY place
                """,
                *_columns([ask.key for ask in asks]),
                [ask.rate for ask in asks],
                [ask.returned for ask in asks],
                [ask.needed for ask in asks],
                [ask.wanted for ask in asks],
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        return [TokenGrant(*row) for row in rows]

    async def hold(self, asks: Sequence[CapacityAsk], *, holder: UUID | None = None) -> list[CapacityGrant]:
        """Hold so much from now on, until it is asked for again; answers in the order asked.

        What is not asked for again within ALIVE_FOR is free for others.

        Args:
            asks: of distinct limits.
            holder: another process that this one asks for.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            rows = await self._pool.fetch(
                """
                SELECT granted, used
                FROM telemetry.hold_capacity($1, $2, $3, $4, $5, $6, $7, $8)
                ORDER BY place
                """,
                holder or self._holder,
                ALIVE_FOR,
                *_columns([ask.key for ask in asks]),
                [ask.limit for ask in asks],
                [ask.wanted for ask in asks],
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        return [CapacityGrant(*row) for row in rows]

    async def usage(self, tenant: str) -> list[Usage]:
        """Return what is used now of a tenant's limits, the 1,000 most used of each kind first.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        try:
            rows = await self._pool.fetch(
                """
                SELECT subject_kind, subject, measure, used
                FROM (
                    SELECT subject_kind, subject, measure,
                        used * exp(-greatest(extract(epoch FROM clock_timestamp() - updated_at), 0)) AS used
                    FROM telemetry.limit_bucket
                    WHERE tenant_id = $1 AND updated_at > clock_timestamp() - interval '10 s'
                    UNION ALL
                    SELECT subject_kind, subject, measure, sum(amount)
                    FROM telemetry.limit_lease
                    WHERE tenant_id = $1 AND renewed_at > clock_timestamp() - $2::interval
                    GROUP BY subject_kind, subject, measure
                ) AS found
                WHERE used >= 0.5
                ORDER BY used DESC
                LIMIT $3
                """,
                tenant,
                ALIVE_FOR,
                _MOST_USED,
            )
        except DATABASE_ERRORS as error:
            raise dependency_unavailable("postgresql") from error
        return [
            Usage(
                LimitKey(tenant, SubjectKind(row["subject_kind"]), row["subject"], Measure(row["measure"])),
                round(row["used"]),
            )
            for row in rows
        ]


def _columns(keys: Sequence[LimitKey]) -> tuple[list[str], list[int], list[str], list[int]]:
    return (
        [key.tenant for key in keys],
        [key.kind.value for key in keys],
        [key.subject for key in keys],
        [key.measure.value for key in keys],
    )
