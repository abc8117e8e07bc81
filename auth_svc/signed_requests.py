"""Signed requests to access tokens: what Envoy asks for each request that is signed.

docs/signing.md says how a request is signed.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from auth_svc.access_tokens import Grant
from auth_svc.exchanged_tokens import ExchangedTokens
from auth_svc.key_exchange import KeyLookup, good_by_generation, grant_of
from auth_svc.key_networks import require_allowed
from auth_svc.key_uses import KeyUses
from auth_svc.signing_secrets import SigningKey
from meshkit import audit
from meshkit.clock import MICROS_PER_SECOND, Clock, from_datetime
from meshkit.errors import Unauthenticated
from meshkit.identity import PrincipalKind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

SCHEME = "TM1-HMAC-SHA256"
# A date may be so far from the clock here, either way.
DATE_TOLERANCE_US = 300 * MICROS_PER_SECOND
# A signature is known until its date is too old for the slowest clock of auth_svc's processes.
_KEPT_US = DATE_TOLERANCE_US + 60 * MICROS_PER_SECOND
_FORM = re.compile(
    rf'{SCHEME} key="(?P<key>[a-z0-9_-]{{1,128}})", ?'
    r'date="(?P<date>\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?Z)", ?'
    r'digest="(?P<digest>[0-9a-f]{64})", ?signature="(?P<signature>[0-9a-f]{64})"',
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as it came, signed or so it says.

    Attributes:
        authorization: its header.
        method: in capitals.
        path: with its query, as sent.
        body: whole.
        address: where from.
        is_stream: its rpc is one.
    """

    authorization: str
    method: str
    path: str
    body: bytes
    address: str
    is_stream: bool = False


class Signatures(Protocol):
    """Where signatures are remembered."""

    async def take(self, tenant: str, signature: bytes, *, expire_us: int) -> bool:
        """Remember a signature until then, microseconds since the epoch; False when it is known."""
        ...


class SignedRequests:
    """Exchanges signatures, each of which counts once, for short-lived access tokens.

    Args:
        root: the mesh's root secret, of which signing secrets are derived.
        keys: where keys are found.
        signatures: those that have come.
        tokens: those exchanged before.
        uses: takes note of keys.
        clock: tells what has expired.
    """

    def __init__(
        self,
        *,
        root: bytes,
        keys: KeyLookup,
        signatures: Signatures,
        tokens: ExchangedTokens,
        uses: KeyUses,
        clock: Clock,
    ) -> None:
        self._root = root
        self._keys = keys
        self._signatures = signatures
        self._tokens = tokens
        self._uses = uses
        self._clock = clock

    async def exchange(self, request: SignedRequest) -> str:
        """Return an access token for a signed request.

        Raises:
            Unauthenticated: SIGNATURE_NOT_FOR_STREAMS, SIGNATURE_DATE_INVALID; SIGNATURE_INVALID, the same
                whatever is wrong; SIGNATURE_REPLAYED.
            PermissionDenied: TENANT_SUSPENDED, ADDRESS_NOT_ALLOWED, told to whoever has the secret only.
        """
        if request.is_stream:
            raise Unauthenticated(
                "a stream has no whole body that could be signed; send the API key or an access token",
                reason=ErrorReason.ERROR_REASON_SIGNATURE_NOT_FOR_STREAMS,
            )
        match = _FORM.fullmatch(request.authorization)
        key = None if match is None else SigningKey.parse(match["key"])
        if match is None or key is None:
            raise refused()
        date_us = self._date_us(match["date"])
        secret = key.secret(self._root)
        signature = bytes.fromhex(match["signature"])
        signed = canonical(request, match["date"], match["key"], match["digest"])
        if not hmac.compare_digest(hmac.digest(secret, signed, "sha256"), signature):
            raise refused()
        # Only now: strangers must not have megabytes hashed.
        if hashlib.sha256(request.body).hexdigest() != match["digest"]:
            raise refused()
        known = await self._tokens.get(
            key.tenant, hashlib.sha256(secret).digest(), partial(self._look_up, key)
        )
        if known is None:
            raise refused()
        audit.concerns(key.tenant, f"{PrincipalKind.API_KEY}:{key.key_id}")
        require_allowed(known.grant.networks, request.address)
        if not await self._signatures.take(key.tenant, signature, expire_us=date_us + _KEPT_US):
            raise Unauthenticated(
                "a request with this signature has come before; sign anew, with another date",
                reason=ErrorReason.ERROR_REASON_SIGNATURE_REPLAYED,
            )
        self._uses.note(key.tenant, key.key_id)
        return known.access_token

    def _date_us(self, text: str) -> int:
        try:
            date_us = from_datetime(datetime.fromisoformat(text))
        except ValueError:
            raise refused() from None
        if abs(date_us - self._clock.now_us()) > DATE_TOLERANCE_US:
            raise Unauthenticated(
                "the date of the signed request lies more than five minutes from the server's; set the clock",
                reason=ErrorReason.ERROR_REASON_SIGNATURE_DATE_INVALID,
            )
        return date_us

    async def _look_up(self, key: SigningKey) -> Grant | None:
        read_us = self._clock.now_us()
        found = await good_by_generation(self._keys, key.tenant, key.key_id, key.generation, self._clock)
        return None if found is None else grant_of(found, read_us)


def canonical(request: SignedRequest, date: str, key: str, digest: str) -> bytes:
    """Return what is signed: scheme, method, path with query, date, key and the body's SHA-256, by lines."""
    return "\n".join((SCHEME, request.method, request.path, date, key, digest)).encode()


def refused() -> Unauthenticated:
    """Return the one error for every signature that is not good."""
    return Unauthenticated(
        "the signature does not fit the request, or its key is unknown, expired or revoked",
        reason=ErrorReason.ERROR_REASON_SIGNATURE_INVALID,
    )
