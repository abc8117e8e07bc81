"""The CRL: kept current in memory, and in a file that Envoy watches."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshkit.ca.authority import CertificateAuthority, Revoked
from meshkit.ca.folder import publish
from meshkit.clock import Clock, to_datetime
from meshkit.errors import FailedPrecondition
from meshkit.revocations import Revocation, RevocationKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_RENEWED_EVERY = timedelta(days=1)


class RevokedCertificates(Protocol):
    """Knows what belongs on the CRL."""

    async def on_crl(self) -> Sequence[Revoked]:
        """Return the certificates of all tenants that are revoked and have not expired."""
        ...


class RevocationList:
    """The CRL of this installation.

    Args:
        authority: signs it; None: this installation has no CA, and no CRL.
        certificates: knows what belongs on it.
        path: where else it is kept, PEM; None: nowhere.
        clock: dates it.
    """

    def __init__(
        self,
        *,
        authority: CertificateAuthority | None,
        certificates: RevokedCertificates,
        path: Path | None,
        clock: Clock,
    ) -> None:
        self._authority = authority
        self._certificates = certificates
        self._path = path
        self._clock = clock
        self._current: x509.CertificateRevocationList | None = None
        self._told = 0
        self._listed = 0

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Note that certificates were revoked, for the next refresh."""
        self._told += sum(revocation.kind == RevocationKind.CERTIFICATE for revocation in revocations)

    async def refresh(self) -> None:
        """Make a new CRL when something was revoked, or the last one is a day old.

        Raises:
            OSError: the file cannot be written.
        """
        if self._authority is None:
            return
        now = to_datetime(self._clock.now_us())
        is_old = self._current is None or now - self._current.last_update_utc > _RENEWED_EVERY
        told = self._told
        if not is_old and told == self._listed:
            return
        revoked = await self._certificates.on_crl()
        current = await asyncio.to_thread(self._authority.revocation_list, revoked, now=now)
        if self._path is not None:
            publish(self._path, current.public_bytes(serialization.Encoding.PEM))
        self._current = current
        self._listed = told

    def current(self) -> x509.CertificateRevocationList:
        """Return the CRL, at most about two seconds old.

        Raises:
            FailedPrecondition: CA_NOT_CONFIGURED.
        """
        require_authority(self._authority)
        assert self._current is not None  # noqa: S101 - made before anybody is served
        return self._current


def require_authority(authority: CertificateAuthority | None) -> CertificateAuthority:
    """Return the CA.

    Raises:
        FailedPrecondition: CA_NOT_CONFIGURED, there is none.
    """
    if authority is None:
        raise FailedPrecondition(
            "this installation has no CA; make one with `twinmesh ca init` and name its folder in "
            "TWINMESH_CA_DIR",
            reason=ErrorReason.ERROR_REASON_CA_NOT_CONFIGURED,
        )
    return authority
