"""Device certificates to access tokens: what Envoy asks for each request at the devices' listener."""

from functools import partial

from auth_svc.access_tokens import Grant
from auth_svc.device_credentials import PERMISSIONS, CertificateLookup, ShownCertificate, is_good, refused
from auth_svc.exchanged_tokens import ExchangedTokens
from meshkit import audit
from meshkit.clock import Clock
from meshkit.identity import PrincipalKind


class CertificateExchange:
    """Exchanges certificates, whose keys Envoy has seen used, for short-lived access tokens.

    Args:
        certificates: where those that were issued are found.
        tokens: those exchanged before.
        clock: tells when they were looked up.
    """

    def __init__(self, *, certificates: CertificateLookup, tokens: ExchangedTokens, clock: Clock) -> None:
        self._certificates = certificates
        self._tokens = tokens
        self._clock = clock

    async def exchange(self, pem: str) -> str:
        """Return an access token for a device.

        Raises:
            Unauthenticated: CERTIFICATE_INVALID, the same whatever is wrong.
            PermissionDenied: TENANT_SUSPENDED; the certificate is good.
        """
        shown = ShownCertificate.parse(pem)
        # It is of our CA, or Envoy would not have let it in.
        audit.concerns(shown.name.tenant, f"{PrincipalKind.DEVICE}:{shown.name.device_id}")
        known = await self._tokens.get(shown.name.tenant, shown.fingerprint, partial(self._look_up, shown))
        if known is None:
            raise refused()
        return known.access_token

    async def _look_up(self, shown: ShownCertificate) -> Grant | None:
        read_us = self._clock.now_us()
        if not await is_good(self._certificates, shown):
            return None
        return Grant(
            tenant=shown.name.tenant,
            subject=shown.name.device_id,
            kind=PrincipalKind.DEVICE,
            permissions=PERMISSIONS,
            credential_id=shown.id,
            credential_expire_us=shown.expire_us,
            read_us=read_us,
        )
