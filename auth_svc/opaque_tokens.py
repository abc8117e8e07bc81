"""Opaque tokens: API keys and refresh tokens, in the form prefix_tenant_id_secret.

The tenant stands in them so that they can be looked up under row-level security. A
tenant's id has no underscore, so the parts cannot run into each other.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

TENANT_PATTERN = "[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
ID_PATTERN = "[a-z0-9]{1,64}"
_ID_BYTES = 10
_SECRET_BYTES = 32
_FORM = re.compile(
    rf"(?P<prefix>tm[kr])_(?P<tenant>{TENANT_PATTERN})_(?P<id>{ID_PATTERN})_(?P<secret>[0-9a-f]{{64}})"
)


class Prefix(StrEnum):
    """What an opaque token is."""

    API_KEY = "tmk"
    REFRESH = "tmr"


@dataclass(frozen=True, slots=True)
class OpaqueToken:
    """One opaque token, taken apart. `secret` is 64 hexadecimal digits."""

    prefix: Prefix
    tenant: str
    id: str
    secret: str

    @property
    def text(self) -> str:
        """Return the token as its owner sends it."""
        return f"{self.prefix}_{self.tenant}_{self.id}_{self.secret}"

    @property
    def hash(self) -> bytes:
        """Return the SHA-256 of the secret, which is all that is stored.

        The secret has 256 random bits, so a slow hash would protect nothing more.
        """
        return hashlib.sha256(self.secret.encode()).digest()


def new_id() -> str:
    """Return a random id (80 bits), unique in the installation."""
    return base64.b32encode(secrets.token_bytes(_ID_BYTES)).decode().lower()


def new_secret() -> str:
    """Return a random secret."""
    return secrets.token_hex(_SECRET_BYTES)


def parse(prefix: Prefix, text: str) -> OpaqueToken | None:
    """Return a token taken apart, None when it does not have the form."""
    match = _FORM.fullmatch(text)
    if match is None or match["prefix"] != prefix:
        return None
    return OpaqueToken(prefix, match["tenant"], match["id"], match["secret"])
