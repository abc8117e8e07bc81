"""Certificates that devices show, at whichever door: whose they are, and whether they are good."""

import hmac
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from auth_svc.suspension import tenant_suspended
from meshkit.ca.authority import uris
from meshkit.ca.names import DeviceName
from meshkit.errors import Unauthenticated
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# What a device may do: nothing that tells it of others.
PERMISSIONS = frozenset({"telemetry:write"})


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """What a certificate says of itself; nothing is proved by it.

    Attributes:
        name: of its device.
        id: its serial number, hexadecimal.
        fingerprint: SHA-256 of it, DER.
        expire_us: when it ends, microseconds since the epoch.
    """

    name: DeviceName
    id: str
    fingerprint: bytes
    expire_us: int

    @classmethod
    def parse(cls, pem: str) -> "ShownCertificate":
        """Read a certificate of a device.

        Raises:
            Unauthenticated: CERTIFICATE_INVALID, it is none.
        """
        try:
            return cls.of(x509.load_pem_x509_certificate(pem.encode()))
        except ValueError as error:
            raise refused() from error

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "ShownCertificate":
        """Read a certificate of a device.

        Raises:
            ValueError: it names none.
        """
        found = uris(certificate)
        if len(found) != 1:
            raise ValueError("the certificate does not have one URI")
        return cls(
            name=DeviceName.parse(found[0]),
            id=f"{certificate.serial_number:x}",
            fingerprint=certificate.fingerprint(hashes.SHA256()),
            expire_us=int(certificate.not_valid_after_utc.timestamp()) * 1_000_000,
        )


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that was issued, and is neither revoked nor expired.

    Attributes:
        fingerprint: SHA-256 of it, DER.
        tenant_suspended: whether its tenant is.
    """

    fingerprint: bytes
    tenant_suspended: bool


class CertificateLookup(Protocol):
    """Finds certificates."""

    async def find(self, tenant: str, certificate_id: str) -> IssuedCertificate | None:
        """Return a certificate, None when there is none, or it is revoked or has expired."""
        ...


async def is_good(certificates: CertificateLookup, shown: ShownCertificate) -> bool:
    """Say whether a certificate is one that was issued here, and neither revoked nor expired.

    Whoever shows it has proved to the server that he has its key.

    Raises:
        PermissionDenied: TENANT_SUSPENDED; it is good.
    """
    issued = await certificates.find(shown.name.tenant, shown.id)
    if issued is None or not hmac.compare_digest(issued.fingerprint, shown.fingerprint):
        return False
    if issued.tenant_suspended:
        raise tenant_suspended()
    return True


def refused() -> Unauthenticated:
    """Return the one error for every certificate that is not good."""
    return Unauthenticated(
        "the device certificate is unknown, expired or revoked",
        reason=ErrorReason.ERROR_REASON_CERTIFICATE_INVALID,
    )
