"""What tenants allow of their telemetry, as every batch asks it: compiled, and as new as a second."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import structlog

from ingest_svc.window import LiveWindow
from meshkit.db import DATABASE_ERRORS
from meshkit.tasks import background
from telemetry_store.ingest_policies import IngestPolicyRow, SubjectKind, SubjectLimits
from telemetry_store.limits import LimitKey, Measure

_log = structlog.get_logger()
_LOOK_EVERY_S = 0.5


class PolicySource(Protocol):
    """Where policies are written."""

    async def changed_since(self, update_us: int) -> Sequence[IngestPolicyRow]:
        """Return the policies written since about a moment (microseconds since the epoch); 0: all."""
        ...


class TenantLimits:
    """A tenant's limits by subject.

    Args:
        limits: each subject once.

    Attributes:
        tenant: of the tenant itself, None without any.
        connection: of each of its streams, None without any.
        has_devices: some device has limits.
    """

    __slots__ = (
        "_devices",
        "_each_device",
        "_each_principal",
        "_limits",
        "_principals",
        "connection",
        "has_devices",
        "tenant",
    )

    def __init__(self, limits: Sequence[SubjectLimits]) -> None:
        self._limits = limits
        by_kind: Mapping[SubjectKind, dict[str, SubjectLimits]] = {kind: {} for kind in SubjectKind}
        for each in limits:
            by_kind[each.kind][each.subject] = each
        self.tenant = by_kind[SubjectKind.TENANT].get("")
        self.connection = by_kind[SubjectKind.CONNECTION].get("")
        self._principals = by_kind[SubjectKind.PRINCIPAL]
        self._each_principal = self._principals.pop("", None)
        self._devices = by_kind[SubjectKind.DEVICE]
        self._each_device = self._devices.pop("", None)
        self.has_devices = bool(self._devices or self._each_device)

    def size(self, key: LimitKey) -> int:
        """Return the size of a limit, 0 when there is none."""
        match key.kind:
            case SubjectKind.TENANT:
                limits = self.tenant
            case SubjectKind.DEVICE:
                limits = self.of_device(key.subject)
            case SubjectKind.PRINCIPAL:
                limits = self.of_principal(key.subject)
            case _:
                limits = self.connection
        return 0 if limits is None else getattr(limits, key.measure.name.lower())

    def only(self, kind: SubjectKind) -> "TenantLimits":
        """Return the limits of one kind of subject."""
        return TenantLimits([each for each in self._limits if each.kind is kind])

    def of_device(self, device_id: str) -> SubjectLimits | None:
        """Return a device's limits, None without any."""
        return self._devices.get(device_id, self._each_device)

    def of_principal(self, principal: str) -> SubjectLimits | None:
        """Return a principal's limits, None without any."""
        return self._principals.get(principal, self._each_principal)


@dataclass(frozen=True, slots=True)
class IngestPolicy:
    """A tenant's policy, the installation's settings put in where it has none.

    Attributes:
        live_window: event times that are taken without a backfill.
        keeps_raw: messages are kept as they came.
        limits: None when nothing is limited.
    """

    live_window: LiveWindow
    keeps_raw: bool
    limits: TenantLimits | None = None


class IngestPolicies:
    """The policies of all tenants that have one, read again as they change.

    While PostgreSQL is away the last ones known hold.

    Args:
        source: where they are written.
        live_window: the installation's: the largest, and that of tenants without one.
        keeps_raw: whether tenants that do not say keep messages as they came.
        max_connections: the installation's: the most that a tenant may have open at once.
    """

    def __init__(
        self, *, source: PolicySource, live_window: LiveWindow, keeps_raw: bool, max_connections: int
    ) -> None:
        self._max_connections = max_connections
        self._source = source
        self._live_window = live_window
        self._default = IngestPolicy(live_window, keeps_raw)
        self._by_tenant: dict[str, tuple[int, IngestPolicy]] = {}
        self._read_us = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Read all of them, if PostgreSQL is there, and go on reading what changes."""
        await self._try_to_read()
        await self._stack.enter_async_context(background(self._follow(), name="ingest-policies"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read no more."""
        await self._stack.aclose()

    def of(self, tenant: str) -> IngestPolicy:
        """Return a tenant's policy."""
        known = self._by_tenant.get(tenant)
        return self._default if known is None else known[1]

    def live_window(self, tenant: str) -> LiveWindow:
        """Return the event times that a tenant takes without a backfill."""
        return self.of(tenant).live_window

    def keeps_raw(self, tenant: str) -> bool:
        """Say whether a tenant keeps messages as they came."""
        return self.of(tenant).keeps_raw

    def limits(self, tenant: str) -> TenantLimits | None:
        """Return what of a tenant is limited, None for nothing."""
        return self.of(tenant).limits

    def connections(self, tenant: str) -> int:
        """Return how many connections a tenant may have open at once."""
        limits = self.limits(tenant)
        own = 0 if limits is None or limits.tenant is None else limits.tenant.connections
        return min(own or self._max_connections, self._max_connections)

    def limit(self, key: LimitKey) -> int:
        """Return the size of a limit, 0 when there is none."""
        if key.measure == Measure.CONNECTIONS:
            return self.connections(key.tenant)
        limits = self.limits(key.tenant)
        return 0 if limits is None else limits.size(key)

    def take(self, rows: Sequence[IngestPolicyRow]) -> None:
        """Go by policies as they are written."""
        for row in rows:
            self._read_us = max(self._read_us, row.update_us)
            version, _ = self._by_tenant.get(row.tenant, (0, None))
            if row.version > version:
                self._by_tenant[row.tenant] = row.version, self._compile(row)

    def _compile(self, row: IngestPolicyRow) -> IngestPolicy:
        most = self._live_window
        return IngestPolicy(
            live_window=LiveWindow(
                late_us=most.late_us if row.late_us is None else min(row.late_us, most.late_us),
                future_us=most.future_us if row.future_us is None else min(row.future_us, most.future_us),
            ),
            keeps_raw=self._default.keeps_raw if row.raw_enabled is None else row.raw_enabled,
            limits=TenantLimits(row.limits) if row.limits else None,
        )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._try_to_read()

    async def _try_to_read(self) -> None:
        try:
            self.take(await self._source.changed_since(self._read_us))
        except DATABASE_ERRORS as error:
            _log.warning("ingest policies cannot be read; the last ones known hold", error=repr(error))
