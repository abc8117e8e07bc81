"""The public keys of an issuer, as far as they may verify its tokens."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import cast

import jwt
import structlog

from auth_svc.issuers import Issuer
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import Unavailable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_FETCH_EVERY_US = 1 * MICROS_PER_SECOND
# Keys that the issuer has taken back are gone after so long …
FRESH_US = 5 * 60 * MICROS_PER_SECOND
# … and while it does not answer, those that it had are good for so long.
_LONGEST_US = 60 * 60 * MICROS_PER_SECOND
_MOST_KEYS = 100
_PUBLIC = frozenset({"kty", "kid", "use", "alg", "n", "e", "crv", "x", "y"})
_FAMILY = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}

# Reads the issuer's JWK set, from where the operator says.
ReadJwks = Callable[[Issuer], Awaitable[bytes]]


class IssuerKeys:
    """Keeps an issuer's keys.

    Args:
        issuer: whose.
        read: reads the JWK set; raises OSError when it cannot.
        clock: tells how old keys are.
    """

    def __init__(self, *, issuer: Issuer, read: ReadJwks, clock: Clock) -> None:
        self.issuer = issuer
        self._read = read
        self._clock = clock
        self._jwks: Mapping[str, Mapping[str, str]] = {}
        self._read_us = self._tried_us = -_LONGEST_US
        self._reading = asyncio.Lock()

    async def key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """Return a key that verifies signatures of an algorithm, None when the issuer has none.

        An unknown kid has the keys read anew, once a second at most, whoever makes them up.

        Raises:
            Unavailable: ISSUER_UNAVAILABLE, the keys cannot be read.
        """
        if kid not in self._known():
            async with self._reading:
                if kid not in self._known() and self._age(self._tried_us) >= _FETCH_EVERY_US:
                    await self._take()
        known = self._known()
        if not known:
            raise Unavailable(
                f"the keys of issuer {self.issuer.name} cannot be read; retry",
                reason=ErrorReason.ERROR_REASON_ISSUER_UNAVAILABLE,
                metadata={"issuer": self.issuer.name},
                retry_after_s=_FETCH_EVERY_US / MICROS_PER_SECOND,
            )
        jwk = known.get(kid)
        return _usable(jwk, algorithm) if jwk is not None else None

    async def refresh(self) -> None:
        """Read keys anew that were read and are not fresh any more; those of a file always."""
        if self._jwks and (self.issuer.jwks_file is not None or self._age(self._read_us) >= FRESH_US):
            async with self._reading:
                await self._take()

    def _known(self) -> Mapping[str, Mapping[str, str]]:
        return self._jwks if self._age(self._read_us) < _LONGEST_US else {}

    def _age(self, moment_us: int) -> int:
        return self._clock.now_us() - moment_us

    async def _take(self) -> None:
        try:
            self._jwks = _public_keys(await self._read(self.issuer))
            self._read_us = self._clock.now_us()
        except (OSError, ValueError) as error:
            _log.warning("keys of an issuer cannot be read", issuer=self.issuer.name, error=str(error))
        finally:
            # Counted from the end: who waited meanwhile must not each try a slow issuer again.
            self._tried_us = self._clock.now_us()


def _public_keys(text: bytes) -> Mapping[str, Mapping[str, str]]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("what it answers is no JSON") from None
    keys = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(keys, list) or len(keys) > _MOST_KEYS:
        raise ValueError(f"what it answers is no JWK set of {_MOST_KEYS} keys at most")
    return {jwk["kid"]: jwk for jwk in map(_public_part, cast("Iterable[object]", keys)) if "kid" in jwk}


def _public_part(jwk: object) -> Mapping[str, str]:
    told = jwk.items() if isinstance(jwk, dict) else ()
    return {name: value for name, value in told if name in _PUBLIC and isinstance(value, str)}


def _usable(jwk: Mapping[str, str], algorithm: str) -> jwt.PyJWK | None:
    """Return a key if it is meant for signatures of this algorithm."""
    if (
        jwk.get("kty") != _FAMILY[algorithm[:2]]
        or jwk.get("alg", algorithm) != algorithm
        or jwk.get("use", "sig") != "sig"
    ):
        return None
    try:
        return jwt.PyJWK(dict(jwk), algorithm=algorithm)
    except jwt.PyJWTError:
        return None
