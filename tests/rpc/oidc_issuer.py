"""An identity provider that a test runs: keys of every kind, a JWK set over HTTP, and its tokens."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshkit.testing.http import Answer, HttpSite, http_site

AUDIENCE = "twinmesh-of-acme"
# Made once for the whole run: RSA keys take a while.
KEYS: Mapping[str, Any] = {
    "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ec": ec.generate_private_key(ec.SECP256R1()),
    "ed": ed25519.Ed25519PrivateKey.generate(),
}
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ALGORITHMS = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}


def public_jwk(key: Any, kid: str, **members: str) -> dict[str, str]:
    """Return a private key's public half as a JWK."""
    if isinstance(key, rsa.RSAPrivateKey):
        made = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    # What PyJWT adds (key_ops) providers leave out.
    return {name: value for name, value in made.items() if name != "key_ops"} | {"kid": kid, **members}


@dataclass
class OidcIssuer:
    """A running provider.

    Attributes:
        site: serves the JWK set, and remembers who asked.
        keys: what is published, by kid.
    """

    site: HttpSite
    keys: dict[str, Any] = field(default_factory=lambda: dict(KEYS))

    @property
    def url(self) -> str:
        """Return what its tokens say in `iss`."""
        return f"http://127.0.0.1:{self.site.port}"

    def jwks(self) -> bytes:
        """Return the JWK set."""
        return json.dumps({"keys": [public_jwk(key, kid) for kid, key in self.keys.items()]}).encode()

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Return the claims of a good token; None leaves one out."""
        now = int(time.time())
        told = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "ada",
            "org": "org-17",
            "groups": ["everybody", "pumps"],
            "iat": now,
            "exp": now + 3600,
            **claims,
        }
        return {name: value for name, value in told.items() if value is not None}

    def token(
        self, kid: str = "rsa", *, headers: Mapping[str, Any] | None = None, key: Any = None, **claims: Any
    ) -> str:
        """Return a token signed with one of its keys, or another."""
        signing = key or self.keys[kid]
        return jwt.encode(
            self.claims(**claims),
            signing,
            algorithm=ALGORITHMS.get(kid, "RS256"),
            headers={"kid": kid, **(headers or {})},
        )

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Return its entry in the operator's file."""
        told = {
            "name": "corp",
            "issuer": self.url,
            "audience": AUDIENCE,
            "jwks_url": f"{self.url}/keys",
            "algorithms": ["RS256", "ES256", "EdDSA"],
            "tenant": {"claim": "org", "values": {"org-17": "demo", "org-18": "nowhere"}},
            "role": {"claim": "groups", "values": {"pumps": "operator", "everybody": "viewer"}},
            **changes,
        }
        return {name: value for name, value in told.items() if value is not None}

    def write(self, path: Path, **changes: Any) -> Path:
        """Write the operator's file with this issuer alone."""
        path.write_text(yaml.safe_dump({"issuers": [self.entry(**changes)]}, sort_keys=False))
        return path


@asynccontextmanager
async def oidc_issuer() -> AsyncIterator[OidcIssuer]:
    """Run a provider while the context is open."""
    async with http_site(lambda _: Answer(status=503)) as site:
        issuer = OidcIssuer(site)
        site.answer = lambda asked: Answer(issuer.jwks()) if asked.target == "/keys" else Answer(status=404)
        yield issuer
