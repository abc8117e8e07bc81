"""Tokens of an attacker: each is a good one but for the one thing that its name tells."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Forger:
    """Holds what no attacker has, auth_svc's own key, so that exactly one thing is wrong.

    Attributes:
        kid: of the key.
        key: auth_svc's.
        claims: of a good token.
        lure: URL of a server that must never be asked for a key.
    """

    kid: str
    key: Ed25519PrivateKey
    claims: dict[str, Any]
    lure: str

    def signed(self, header: dict[str, Any] | None = None, /, **claims: Any) -> str:
        """Return a token with header fields and claims replaced; None leaves one out."""
        return self._encode(self.key, header or {}, claims)

    def self_signed(self, header: dict[str, Any]) -> str:
        """Return a token by the attacker's key, which `header` offers as the one to verify by."""
        attacker = Ed25519PrivateKey.generate()
        if "jwk" in header:
            header = {**header, "jwk": json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(attacker.public_key()))}
        return self._encode(attacker, header, {})

    def unsigned(self, algorithm: str) -> str:
        """Return a token without a signature."""
        return f"{self._signing_input(algorithm)}."

    def symmetric(self, secret: bytes) -> str:
        """Return a token whose HMAC has a public thing for its secret."""
        signing_input = self._signing_input("HS256")
        hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        return f"{signing_input}.{_base64url(hmac.sign(signing_input.encode(), secret))}"

    def public_pem(self) -> bytes:
        """Return the public key as a PEM file holds it."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def _encode(self, key: Ed25519PrivateKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
        payload = {name: value for name, value in {**self.claims, **claims}.items() if value is not None}
        return jwt.encode(
            payload, key, algorithm="EdDSA", headers={"kid": self.kid, "typ": "at+jwt", **header}
        )

    def _signing_input(self, algorithm: str) -> str:
        header = {"alg": algorithm, "typ": "at+jwt", "kid": self.kid}
        return ".".join(_base64url(json.dumps(part).encode()) for part in (header, self.claims))


def flipped(token: str, *, part: int) -> str:
    """Return a token with one bit of header (0), claims (1) or signature (2) turned over."""
    parts = token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=="))
    raw[len(raw) // 2] ^= 1
    parts[part] = _base64url(bytes(raw))
    return ".".join(parts)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _now() -> int:
    return int(time.time())


FORGERIES: dict[str, Callable[[Forger], str]] = {
    "nonsense": lambda _: "nonsense",
    "dots": lambda _: "..",
    "no base64": lambda _: "!.!.!",
    "two parts": lambda forger: forger.signed().rpartition(".")[0],
    "five parts, as of an encrypted one": lambda forger: f"{forger.signed()}.e30.e30",
    "no JSON in it": lambda _: ".".join([_base64url(b"\xff")] * 3),
    "expired": lambda forger: forger.signed(exp=_now() - 60),
    "no expiry": lambda forger: forger.signed(exp=None),
    "an expiry that is no number": lambda forger: forger.signed(exp="tomorrow"),
    "not yet valid": lambda forger: forger.signed(nbf=_now() + _DAY_S),
    "alg none": lambda forger: forger.unsigned("none"),
    "alg None": lambda forger: forger.unsigned("None"),
    "alg NONE": lambda forger: forger.unsigned("NONE"),
    "no alg": lambda forger: forger.unsigned(""),
    "signature cut off": lambda forger: forger.signed().rpartition(".")[0] + ".",
    "HS256 by the public key": lambda forger: forger.symmetric(forger.key.public_key().public_bytes_raw()),
    "HS256 by the public key's PEM": lambda forger: forger.symmetric(forger.public_pem()),
    "HS256 by the public key's x": lambda forger: forger.symmetric(
        _base64url(forger.key.public_key().public_bytes_raw()).encode()
    ),
    "HS256 by nothing": lambda forger: forger.symmetric(b""),
    "wrong issuer": lambda forger: forger.signed(iss="https://elsewhere.example"),
    "no issuer": lambda forger: forger.signed(iss=None),
    "wrong audience": lambda forger: forger.signed(aud="elsewhere"),
    "audience of services": lambda forger: forger.signed(aud="twinmesh-internal"),
    "no audience": lambda forger: forger.signed(aud=None),
    "typ JWT": lambda forger: forger.signed({"typ": "JWT"}),
    "no typ": lambda forger: forger.signed({"typ": None}),
    "no tenant": lambda forger: forger.signed(tenant=None),
    "kind of a service": lambda forger: forger.signed(kind="service"),
    "kid of nobody": lambda forger: forger.signed({"kid": "nobody"}),
    "kid as a path": lambda forger: forger.signed({"kid": "../../../../dev/null"}),
    "kid as SQL": lambda forger: forger.signed({"kid": "x' UNION SELECT 'secret' --"}),
    "kid as a URL": lambda forger: forger.signed({"kid": f"{forger.lure}/kid"}),
    "jku": lambda forger: forger.self_signed({"jku": f"{forger.lure}/jku"}),
    "jku, another kid": lambda forger: forger.self_signed({"jku": f"{forger.lure}/jku", "kid": "mine"}),
    "x5u": lambda forger: forger.self_signed({"x5u": f"{forger.lure}/x5u"}),
    "embedded jwk": lambda forger: forger.self_signed({"jwk": True}),
    "embedded jwk, another kid": lambda forger: forger.self_signed({"jwk": True, "kid": "mine"}),
    "crit of an extension nobody knows": lambda forger: forger.signed({"crit": ["x"], "x": 1}),
    "flipped header": lambda forger: flipped(forger.signed(), part=0),
    "flipped claims": lambda forger: flipped(forger.signed(), part=1),
    "flipped signature": lambda forger: flipped(forger.signed(), part=2),
}
