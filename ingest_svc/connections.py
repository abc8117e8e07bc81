"""How many connections of a tenant processes may have: counted with all its other limits."""

from collections.abc import Callable, Sequence
from uuid import UUID

from ingest_svc.ingest_policies import IngestPolicies
from ingest_svc.limiter import Limited, Sent
from meshkit.connections import Held, Refused, Wanted
from telemetry_store.ingest_policies import SubjectKind
from telemetry_store.limits import CapacityAsk, LimitKey, LimitStore, Measure

# A transaction locks each of its tenants, and PostgreSQL has room for some thousand locks of all sessions.
_HELD_AT_ONCE = 200


class ConnectionLimits:
    """Counts connections for all services.

    Args:
        policies: how many a tenant may have.
        counts: where all processes count together.
        on_limited: told of what processes refused, and how often.
    """

    def __init__(
        self, *, policies: IngestPolicies, counts: LimitStore, on_limited: Callable[[Limited, int], None]
    ) -> None:
        self._policies = policies
        self._counts = counts
        self._on_limited = on_limited

    async def hold(
        self, holder: UUID, wanted: Sequence[Wanted], refused: Sequence[Refused]
    ) -> Sequence[Held]:
        """Return what a holder may have from now on, in the order asked.

        Args:
            holder: a start of a process, or what several of them count as one.
            wanted: each tenant once.
            refused: since it last asked.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        asks = [CapacityAsk(_key(each.tenant), self._limit(each.tenant), each.connections) for each in wanted]
        grants = [
            grant
            for first in range(0, len(asks), _HELD_AT_ONCE)
            for grant in await self._counts.hold(asks[first : first + _HELD_AT_ONCE], holder=holder)
        ]
        for tenant, principal, times in refused:
            limit = self._limit(tenant)
            self._on_limited(Limited(_key(tenant), limit, limit, Sent(tenant, principal, 0, 0)), times)
        return [Held(grant.granted, grant.used, ask.limit) for ask, grant in zip(asks, grants, strict=True)]

    def _limit(self, tenant: str) -> int:
        return self._policies.connections(tenant)


def _key(tenant: str) -> LimitKey:
    return LimitKey(tenant, SubjectKind.TENANT, "", Measure.CONNECTIONS)
