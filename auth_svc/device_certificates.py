"""Device certificates: issued, renewed, revoked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from auth_svc.device_credentials import PERMISSIONS, ShownCertificate
from auth_svc.enabled_devices import EnabledDevice
from auth_svc.grants import require_held
from auth_svc.revocation_list import require_authority
from auth_svc.revocations import kept_until
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.requests import public_key_of
from meshkit.clock import Clock, to_datetime
from meshkit.errors import FailedPrecondition, PermissionDenied, invalid_field, not_found
from meshkit.identity import Principal, PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DeviceCertificate:
    """A certificate that was issued; times in microseconds since the epoch.

    Attributes:
        tenant: whose device it stands for.
        id: its serial number, hexadecimal.
        device_id: the device.
        device_create_us: when that was made, which tells it from others of its id; None: it was issued before
            this was kept.
        uri: the name in it.
        chain: it and the issuing CA's, PEM.
        fingerprint: SHA-256 of it, DER.
        renewed_from: id of the certificate that it was renewed with, None for none.
        creator: name of the principal that asked for it.
        create_us: when it was issued.
        expire_us: when it ends.
        revoke_us: when it was revoked, None: it was not.
    """

    tenant: str
    id: str
    device_id: str
    device_create_us: int | None
    uri: str
    chain: str
    fingerprint: bytes
    renewed_from: str | None
    creator: str
    create_us: int
    expire_us: int
    revoke_us: int | None = None


class DeviceCertificateStore(Protocol):
    """Where certificates are kept."""

    async def create(self, certificate: DeviceCertificate) -> bool:
        """Store one; False when the one that it is renewed from was revoked, and nothing is stored."""
        ...

    async def get(self, tenant: str, certificate_id: str) -> DeviceCertificate | None:
        """Return one, None when there is none."""
        ...

    async def page(
        self, tenant: str, *, device_id: str, after: str, limit: int
    ) -> Sequence[DeviceCertificate]:
        """Return certificates by id after an id; of one device unless that is ""."""
        ...

    async def revoke(self, tenant: str, certificate_id: str, *, until: datetime) -> Sequence[str] | None:
        """Revoke one and all that were renewed from it; return the ids, None when there is no such one.

        Until the given time tokens of theirs are held against the list of revocations.
        """
        ...

    async def revoke_of_device(
        self, tenant: str, device_id: str, *, made_until: datetime, until: datetime
    ) -> Sequence[str]:
        """Revoke what was issued to a device that was made at a time or before; return the ids.

        Until the given time tokens of theirs are held against the list of revocations.
        """
        ...


class Devices(Protocol):
    """Knows the devices of tenants."""

    async def enabled(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, EnabledDevice]:
        """Return those that exist in the tenant and are not disabled, by id.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...


class DeviceCertificates:
    """Issues and revokes certificates.

    Args:
        authority: signs; None: this installation has no CA.
        store: where they are kept.
        devices: knows which devices there are.
        announce: tells the mesh that certificates were revoked.
        clock: dates them.
        valid_days: life of those for which nothing else is asked.
    """

    def __init__(
        self,
        *,
        authority: CertificateAuthority | None,
        store: DeviceCertificateStore,
        devices: Devices,
        announce: Callable[[], Awaitable[None]],
        clock: Clock,
        valid_days: int,
    ) -> None:
        self._authority = authority
        self._store = store
        self._devices = devices
        self._announce = announce
        self._clock = clock
        self._valid_days = valid_days

    async def issue(
        self, caller: Principal, *, device_id: str, csr: str, valid_days: int
    ) -> DeviceCertificate:
        """Issue a certificate to a device of the caller's tenant.

        Args:
            caller: who asks.
            device_id: the device.
            csr: PKCS#10, PEM.
            valid_days: its life; 0: as it is for all.

        Raises:
            FailedPrecondition: REFERENCE_NOT_FOUND, CA_NOT_CONFIGURED.
            InvalidArgument: the CSR is not good.
            PermissionDenied: GRANT_EXCEEDS_CALLER.
            Unavailable: nobody can tell whether the device exists.
        """
        require_held(PERMISSIONS, caller.permissions, so="a device that you let in cannot either")
        days = valid_days or self._valid_days
        return await self._sign(caller, device_id, csr, life=timedelta(days=days))

    async def renew(self, caller: Principal, *, csr: str) -> DeviceCertificate:
        """Issue a certificate to the device that calls.

        Raises:
            PermissionDenied: CERTIFICATE_REQUIRED, it is no device that calls.
            FailedPrecondition: REFERENCE_NOT_FOUND, CA_NOT_CONFIGURED.
            InvalidArgument: the CSR is not good.
            Unavailable: nobody can tell whether the device exists.
        """
        if caller.kind != PrincipalKind.DEVICE:
            raise PermissionDenied(
                "only a device renews its certificate, showing it at the gateway's listener for devices",
                reason=ErrorReason.ERROR_REASON_CERTIFICATE_REQUIRED,
            )
        shown = await self._store.get(caller.tenant, caller.credential_id)
        if shown is None:
            raise _shown_is_revoked()
        life = timedelta(days=self._valid_days)
        return await self._sign(caller, caller.subject, csr, life=life, shown=shown)

    async def get(self, tenant: str, certificate_id: str) -> DeviceCertificate:
        """Return a certificate.

        Raises:
            NotFound: the tenant has none with this id.
        """
        found = await self._store.get(tenant, certificate_id)
        if found is None:
            raise not_found("device_certificate", certificate_id)
        return found

    async def page(
        self, tenant: str, *, device_id: str, after: str, limit: int
    ) -> tuple[Sequence[DeviceCertificate], bool]:
        """Return a tenant's certificates by id after an id, and whether there are more."""
        found = await self._store.page(tenant, device_id=device_id, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    async def revoke(self, tenant: str, certificate_id: str) -> Sequence[str]:
        """Revoke a certificate and all that were renewed from it; return the ids of those revoked now.

        Raises:
            NotFound: the tenant has none with this id.
        """
        until = kept_until(self._clock.now_us())
        revoked = await self._store.revoke(tenant, certificate_id, until=until)
        if revoked is None:
            raise not_found("device_certificate", certificate_id)
        await self._announce()
        _log.info("device certificate revoked", certificates=revoked)
        return revoked

    async def revoke_of_device(self, tenant: str, device_id: str, *, made_until_us: int) -> None:
        """Revoke what was issued to a device that is gone, but not what a later one of its id has.

        Args:
            tenant: whose it was.
            device_id: its id.
            made_until_us: when it was made, microseconds since the epoch.
        """
        revoked = await self._store.revoke_of_device(
            tenant, device_id, made_until=to_datetime(made_until_us), until=kept_until(self._clock.now_us())
        )
        if revoked:
            await self._announce()
            _log.info("certificates of a deleted device revoked", device_id=device_id, certificates=revoked)

    async def _created_us(self, tenant: str, device_id: str) -> int | None:
        device = (await self._devices.enabled(tenant, [device_id])).get(device_id)
        return None if device is None else device.create_us

    async def _sign(
        self,
        caller: Principal,
        device_id: str,
        csr: str,
        *,
        life: timedelta,
        shown: DeviceCertificate | None = None,
    ) -> DeviceCertificate:
        authority = require_authority(self._authority)
        try:
            public_key = public_key_of(csr)
        except ValueError as error:
            raise invalid_field("csr", str(error)) from error
        created_us = await self._created_us(caller.tenant, device_id)
        if created_us is None:
            raise _no_device(device_id)
        # Of a device that is gone: its certificate does not become one of the device that has its id now.
        if shown is not None and shown.device_create_us not in (created_us, None):
            raise _shown_is_revoked()
        name = authority.device_name(caller.tenant, device_id)
        now_us = self._clock.now_us()
        signed = await asyncio.to_thread(
            authority.issue_for_device, name, public_key, now=to_datetime(now_us), life=life
        )
        made = ShownCertificate.of(signed)
        certificate = DeviceCertificate(
            tenant=caller.tenant,
            id=made.id,
            device_id=device_id,
            uri=name.uri,
            chain=authority.chain(signed),
            fingerprint=made.fingerprint,
            device_create_us=created_us if shown is None else shown.device_create_us,
            renewed_from=None if shown is None else shown.id,
            creator=caller.name,
            create_us=now_us,
            expire_us=made.expire_us,
        )
        if not await self._store.create(certificate):
            raise _shown_is_revoked()
        # Whoever deleted it meanwhile did not see this certificate.
        if await self._created_us(caller.tenant, device_id) != created_us:
            await self.revoke_of_device(caller.tenant, device_id, made_until_us=created_us)
            raise _no_device(device_id)
        _log.info("device certificate issued", certificate=made.id, device_id=device_id)
        return certificate


def _shown_is_revoked() -> PermissionDenied:
    return PermissionDenied(
        "the certificate that was shown has been revoked; have a new one issued",
        reason=ErrorReason.ERROR_REASON_CERTIFICATE_REQUIRED,
    )


def _no_device(device_id: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"device {device_id!r} does not exist, or is disabled",
        reason=ErrorReason.ERROR_REASON_REFERENCE_NOT_FOUND,
        metadata={"resource": "device", "id": device_id},
    )
