"""The key ring: which keys are published, which one signs, when the next is made.

A key's life: published at once → signs from activate_us → is replaced → stays
published while tokens that it signed are valid → is deleted. Those who cache the
key set (Envoy) do not ask again for an unknown kid, so a key is published well before
it signs; only the very first signs at once, since nobody can have cached a set yet.
"""

import json
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from auth_svc.access_tokens import ACCESS_TOKEN_LIFE_S, Signer
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.errors import dependency_unavailable
from meshkit.identity import TOKEN_ALGORITHM
from meshkit.secrets import derive

JWKS_CACHE_S = 60  # as long as verifiers keep the key set; gateway/envoy.yaml says the same
RELOAD_EVERY_S = 15  # a key that another process made is published here this soon
PUBLISH_AHEAD_S = 2 * JWKS_CACHE_S
_CLOCK_SKEW_S = 60
_DAY_S = 24 * 60 * 60
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key as it is stored; times in microseconds since the epoch."""

    kid: str
    public_jwk: Mapping[str, str]
    encrypted_private_key: bytes
    create_us: int
    activate_us: int
    retire_us: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to change: a key to make (and when it signs), end of others, whom to delete."""

    activate_us: int | None = None
    retire_us: Mapping[str, int] = field(default_factory=dict)
    expired: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Tell whether there is anything to do."""
        return self.activate_us is not None or bool(self.expired)


@dataclass(frozen=True, slots=True)
class Changes:
    """A plan with its key made."""

    created: SigningKey | None
    retire_us: Mapping[str, int]
    expired: tuple[str, ...]


class SigningKeyStore(Protocol):
    """Where the keys are kept."""

    async def keys(self) -> Sequence[SigningKey]:
        """Return all keys."""
        ...

    async def change(self, decide: Callable[[Sequence[SigningKey]], Changes]) -> Sequence[SigningKey]:
        """Let one process at a time decide what changes, apply it, and return all keys."""
        ...


class SigningKeyUnreadable(Exception):
    """A stored key was encrypted under another mesh secret."""


def plan(keys: Sequence[SigningKey], *, now_us: int, life_s: float) -> Plan:
    """Return what has to change in the ring now.

    Args:
        keys: all that are stored.
        now_us: the present.
        life_s: how long a key signs before the next is made.
    """
    expired = tuple(key.kid for key in keys if key.retire_us is not None and key.retire_us <= now_us)
    kept = [key for key in keys if key.kid not in expired]
    if not kept:
        return Plan(activate_us=now_us, expired=expired)
    newest = max(kept, key=lambda key: key.activate_us)
    if newest.activate_us + life_s * MICROS_PER_SECOND > now_us:
        return Plan(expired=expired)
    activate_us = now_us + PUBLISH_AHEAD_S * MICROS_PER_SECOND
    retire_us = activate_us + (ACCESS_TOKEN_LIFE_S + _CLOCK_SKEW_S) * MICROS_PER_SECOND
    retiring = {key.kid: retire_us for key in kept if key.retire_us is None}
    return Plan(activate_us=activate_us, retire_us=retiring, expired=expired)


def signing_key_at(keys: Sequence[SigningKey], now_us: int) -> SigningKey | None:
    """Return the key that signs at a time: the last one that became active."""
    active = [key for key in keys if key.activate_us <= now_us]
    return max(active, key=lambda key: (key.activate_us, key.kid), default=None)


def published_at(keys: Sequence[SigningKey], now_us: int) -> list[SigningKey]:
    """Return the keys that verify tokens at a time, by kid."""
    published = [key for key in keys if key.retire_us is None or key.retire_us > now_us]
    return sorted(published, key=lambda key: key.kid)


class KeyRing:
    """The installation's signing keys, as this process knows them.

    Args:
        store: where they are kept.
        mesh_secret: root of the key that encrypts private keys.
        life_days: how long a key signs before `refresh` makes the next; None: it is made by `rotate` only.
        clock: tells which key signs now.
    """

    def __init__(
        self, *, store: SigningKeyStore, mesh_secret: bytes, life_days: int | None = None, clock: Clock
    ) -> None:
        self._store = store
        self._cipher = AESGCM(derive(mesh_secret, "signing-keys"))
        self._life_s = math.inf if life_days is None else life_days * _DAY_S
        self._clock = clock
        self._keys: Sequence[SigningKey] = ()
        self._private_keys: dict[str, Ed25519PrivateKey] = {}

    async def refresh(self) -> None:
        """Read the keys anew; make the first, or the next when it is time.

        Raises:
            SigningKeyUnreadable: the mesh secret is not the one they were stored with.
        """
        keys = await self._store.keys()
        if plan(keys, now_us=self._clock.now_us(), life_s=self._life_s).changes:
            keys = await self._store.change(partial(self._decide, life_s=self._life_s))
        self._private_keys = {key.kid: self._private_key(key) for key in keys}
        self._keys = keys

    async def rotate(self) -> SigningKey:
        """Make the next key before its time, unless it is on its way already, and return it."""
        keys = await self._store.change(partial(self._decide, life_s=0))
        return max(keys, key=lambda key: key.activate_us)

    async def jwks(self) -> list[dict[str, str]]:
        """Return the published public keys (RFC 7517)."""
        return [dict(key.public_jwk) for key in published_at(self._keys, self._clock.now_us())]

    def signer(self) -> Signer:
        """Return the key that signs now.

        Raises:
            Unavailable: there is none; the ring was never read.
        """
        key = signing_key_at(self._keys, self._clock.now_us())
        if key is None:
            raise dependency_unavailable("signing key")
        return Signer(key.kid, self._private_keys[key.kid])

    def _decide(self, keys: Sequence[SigningKey], *, life_s: float) -> Changes:
        now_us = self._clock.now_us()
        planned = plan(keys, now_us=now_us, life_s=life_s)
        created = None
        if planned.activate_us is not None:
            created = self._new_key(create_us=now_us, activate_us=planned.activate_us)
        return Changes(created, planned.retire_us, planned.expired)

    def _new_key(self, *, create_us: int, activate_us: int) -> SigningKey:
        private_key = Ed25519PrivateKey.generate()
        kid = secrets.token_hex(8)
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(private_key.public_key()))
        nonce = os.urandom(_NONCE_BYTES)
        return SigningKey(
            kid=kid,
            public_jwk={**public, "kid": kid, "alg": TOKEN_ALGORITHM, "use": "sig"},
            encrypted_private_key=nonce
            + self._cipher.encrypt(nonce, private_key.private_bytes_raw(), kid.encode()),
            create_us=create_us,
            activate_us=activate_us,
        )

    def _private_key(self, key: SigningKey) -> Ed25519PrivateKey:
        if key.kid in self._private_keys:
            return self._private_keys[key.kid]
        stored = key.encrypted_private_key
        try:
            raw = self._cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], key.kid.encode())
        except InvalidTag:
            raise SigningKeyUnreadable(
                f"signing key {key.kid} was stored under another TWINMESH_MESH_SECRET; "
                "give auth_svc that secret, or delete the rows of auth.signing_key, which voids all tokens"
            ) from None
        return Ed25519PrivateKey.from_private_bytes(raw)
