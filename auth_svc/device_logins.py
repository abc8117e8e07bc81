"""Log-ins of devices by MQTT: a certificate, or an API key and the device that it is used for."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog

from auth_svc import device_credentials
from auth_svc.api_keys import StoredKey, credential_id
from auth_svc.device_credentials import CertificateLookup, IssuedCertificate, ShownCertificate, is_good
from auth_svc.enabled_devices import EnabledDevice
from auth_svc.key_exchange import KeyLookup, find_good, live_secrets, refused
from auth_svc.key_networks import require_allowed
from auth_svc.key_uses import KeyUses
from auth_svc.login_limits import LoginLimits, Secret
from auth_svc.opaque_tokens import Prefix, parse
from meshkit import audit
from meshkit.clock import Clock
from meshkit.errors import FailedPrecondition, PermissionDenied, Unavailable
from meshkit.identity import PrincipalKind
from meshkit.mqtt import Login, key_of
from meshkit.scope import Scope
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
PERMISSION = "telemetry:write"
# What NATS is told of a log-in has to fit into one message, and into its memory.
MOST_DEVICES = 5_000
# Holds no device.
_ENDED = Scope()
_T = TypeVar("_T")


class Keys(KeyLookup, Protocol):
    """Finds API keys."""

    async def find_all(self, tenant: str, key_ids: Sequence[str]) -> Mapping[str, StoredKey]:
        """Return those of some keys that are there and not revoked, by id."""
        ...


class Certificates(CertificateLookup, Protocol):
    """Finds device certificates."""

    async def find_all(self, tenant: str, certificate_ids: Sequence[str]) -> Mapping[str, IssuedCertificate]:
        """Return those of some certificates that are there, not revoked and not expired, by id."""
        ...


class Devices(Protocol):
    """Knows the devices of tenants."""

    async def enabled(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, EnabledDevice]:
        """Return those that exist in the tenant and are not disabled, by id.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def all_of(self, tenant: str, *, scope: Scope | None, most: int) -> Sequence[EnabledDevice]:
        """Return a tenant's devices that are not disabled, of a scope if any; few more than `most`.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


class Deletions(Protocol):
    """Knows which tenants have deleted devices, as DeviceDeletions does."""

    async def place(self) -> int:
        """Return a number; whoever asks from now on which devices there are is told of none up to it."""
        ...

    async def last_by_tenant(self, *, after: int) -> Mapping[str, int]:
        """Return the number of each tenant's last deletion, of those after a number.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a log-in may do.

    Attributes:
        login: who is behind it.
        device_ids: devices whose telemetry it may publish.
        expire_us: when it ends, microseconds since the epoch, None: never.
    """

    login: Login
    device_ids: Sequence[str]
    expire_us: int | None


class DeviceLogins:
    """Decides who may come in by MQTT.

    A device that has shown its certificate publishes for itself. Otherwise the password is an
    API key that holds telemetry:write, and the user is a device of the key's tenant, for which
    alone it may then publish; or the key's own id, for all devices that the tenant has at that
    moment, until one of them is deleted: from then on its id may be another tenant's. A key that
    is bound to devices logs in these only; what a gateway publishes speaks for its children, so
    it has to be bound to the gateway as one.

    Args:
        keys: where API keys are found.
        certificates: where device certificates are found.
        devices: knows which devices there are.
        deletions: knows who has deleted some.
        uses: takes note of keys that let somebody in.
        limits: bound guesses at keys.
        clock: tells what has expired.
    """

    def __init__(
        self,
        *,
        keys: Keys,
        certificates: Certificates,
        devices: Devices,
        deletions: Deletions,
        uses: KeyUses,
        limits: LoginLimits,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._keys = keys
        self._certificates = certificates
        self._devices = devices
        self._deletions = deletions
        self._uses = uses
        self._clock = clock

    async def log_in(self, user: str, password: str, *, address: str) -> Permitted:
        """Return what a device may do.

        Args:
            user: a device, or the key's id.
            password: the key.
            address: where from.

        Raises:
            Unauthenticated: API_KEY_INVALID, the same whatever is wrong with the key.
            PermissionDenied: TENANT_SUSPENDED, ADDRESS_NOT_ALLOWED, PERMISSION_MISSING.
            FailedPrecondition: the user is no device that the key may log in.
            ResourceExhausted: LOGIN_LIMITED.
            Unavailable: nobody can tell now.
        """
        token = parse(Prefix.API_KEY, password)
        if token is None:
            raise refused()
        async with self._limits.exchange(Secret.API_KEY, address, token.hash):
            good = await find_good(self._keys, token, self._clock)
            if good is None:
                raise refused()
        api_key = good.api_key
        require_allowed(api_key.allowed_addresses, address)
        login = Login(api_key.tenant, good.credential_id, "")
        if PERMISSION not in api_key.permissions:
            raise PermissionDenied(
                f"the API key does not hold {PERMISSION}",
                reason=ErrorReason.ERROR_REASON_PERMISSION_MISSING,
                metadata={"permission": PERMISSION},
            )
        if user == api_key.id:
            # Before the devices: one that is deleted meanwhile makes the log-in outdated.
            login = replace(login, devices_as_of=await self._deletions.place())
            device_ids = await self._all_devices(api_key.tenant, api_key.scope)
            self._uses.note(api_key.tenant, api_key.id)
            return Permitted(login, device_ids, good.expire_us)
        device = (await self._devices.enabled(api_key.tenant, [user])).get(user)
        if device is None or not _may_publish(api_key.scope, device):
            raise FailedPrecondition(
                "the user is neither an enabled device that the API key is for nor the key's id",
                reason=ErrorReason.ERROR_REASON_DEVICE_UNKNOWN,
            )
        self._uses.note(api_key.tenant, api_key.id)
        return Permitted(replace(login, device_id=user), [user], good.expire_us)

    async def log_in_by_certificate(self, pem: str) -> Permitted:
        """Return what a device may do that has shown a certificate, whatever else it sends.

        Args:
            pem: the certificate, whose key the server has seen used.

        Raises:
            Unauthenticated: CERTIFICATE_INVALID, the same whatever is wrong with it.
            PermissionDenied: TENANT_SUSPENDED.
            FailedPrecondition: its device is gone, or disabled.
            Unavailable: nobody can tell now.
        """
        shown = ShownCertificate.parse(pem)
        # It is of our CA, or NATS would not have let it in.
        audit.concerns(shown.name.tenant, f"{PrincipalKind.DEVICE}:{shown.name.device_id}")
        if not await is_good(self._certificates, shown):
            raise device_credentials.refused()
        tenant, device_id = shown.name.tenant, shown.name.device_id
        if device_id not in await self._devices.enabled(tenant, [device_id]):
            raise FailedPrecondition(
                "the certificate's device does not exist, or is disabled",
                reason=ErrorReason.ERROR_REASON_DEVICE_UNKNOWN,
            )
        login = Login(tenant, shown.id, device_id, by_certificate=True)
        return Permitted(login, [device_id], shown.expire_us)

    async def ended(self, logins: Sequence[Login]) -> Sequence[Login]:
        """Return those whose credential or tenant has no right any more."""
        scope_of = await self._scopes(logins)
        return [login for login in logins if scope_of(login) is _ENDED]

    async def outdated(self, logins: Sequence[Login]) -> Sequence[Login]:
        """Return those that would be refused today, or would be told other devices since one was deleted.

        While nobody can tell about devices these are those that have ended.
        """
        scope_of = await self._scopes(logins)
        live = [login for login in logins if scope_of(login) is not _ENDED]
        try:
            enabled = await _by_tenant(
                self._devices.enabled, ((login.tenant, login.device_id) for login in live if login.device_id)
            )
            deletions = await self._last_deletions([login for login in live if not login.device_id])
        except Unavailable as error:
            _log.warning("log-ins are not held against devices; they are later", error=str(error))
            return [login for login in logins if scope_of(login) is _ENDED]

        def is_good(login: Login) -> bool:
            scope = scope_of(login)
            if scope is _ENDED or not login.device_id:
                return scope is not _ENDED and deletions.get(login.tenant, 0) <= login.devices_as_of
            device = enabled[login.tenant].get(login.device_id)
            return device is not None and _may_publish(scope, device)

        return [login for login in logins if not is_good(login)]

    async def _scopes(self, logins: Sequence[Login]) -> Callable[[Login], Scope | None]:
        """Return what tells what a log-in's credential is bound to, _ENDED when it has no right any more."""
        keys = await _by_tenant(
            self._keys.find_all,
            ((each.tenant, key_of(each.credential_id)) for each in logins if not each.by_certificate),
        )
        certificates = await _by_tenant(
            self._certificates.find_all,
            ((each.tenant, each.credential_id) for each in logins if each.by_certificate),
        )

        def scope_of(login: Login) -> Scope | None:
            if login.by_certificate:
                return _scope_of_certificate(certificates[login.tenant].get(login.credential_id))
            key = keys[login.tenant].get(key_of(login.credential_id))
            return _scope_of_key(key, login.credential_id, self._clock)

        return scope_of

    async def _last_deletions(self, logins: Sequence[Login]) -> Mapping[str, int]:
        """Return the last deletions that may make log-ins for all devices outdated, by tenant."""
        if not logins:
            return {}
        return await self._deletions.last_by_tenant(after=min(login.devices_as_of for login in logins))

    async def _all_devices(self, tenant: str, scope: Scope | None) -> Sequence[str]:
        found = await self._devices.all_of(tenant, scope=scope, most=MOST_DEVICES)
        ids = [device.id for device in found if _may_publish(scope, device)]
        if len(ids) > MOST_DEVICES:
            raise FailedPrecondition(
                f"with more than {MOST_DEVICES:,} devices log in by device id",
                reason=ErrorReason.ERROR_REASON_DEVICE_UNKNOWN,
            )
        return ids


async def _by_tenant(
    find: Callable[[str, Sequence[str]], Awaitable[Mapping[str, _T]]], wanted: Iterable[tuple[str, str]]
) -> Mapping[str, Mapping[str, _T]]:
    """Return what is found of (tenant, id), by tenant and id, each tenant's by one question."""
    ids: dict[str, set[str]] = {}
    for tenant, id_ in wanted:
        ids.setdefault(tenant, set()).add(id_)
    return {tenant: await find(tenant, sorted(each)) for tenant, each in ids.items()}


def _scope_of_certificate(certificate: IssuedCertificate | None) -> Scope | None:
    """Return what a certificate is bound to, _ENDED when it has no right any more."""
    return _ENDED if certificate is None or certificate.tenant_suspended else None


def _scope_of_key(stored: StoredKey | None, shown_id: str, clock: Clock) -> Scope | None:
    """Return what a key is bound to, _ENDED when it or the secret that was shown has no right any more."""
    if stored is None or stored.tenant_suspended:
        return _ENDED
    secrets = live_secrets(stored, clock)
    is_live = shown_id in {credential_id(stored.api_key.id, secret.generation) for secret in secrets}
    return stored.api_key.scope if is_live else _ENDED


def _may_publish(scope: Scope | None, device: EnabledDevice) -> bool:
    if scope is None:
        return True
    return device.id in scope.gateway_ids if device.is_gateway else scope.holds(device.id, device.parent_id)
