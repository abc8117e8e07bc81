"""Signing secrets of API keys: derived from the root secret, so that nothing that signs is stored."""

import re
from dataclasses import dataclass

from auth_svc.api_keys import credential_id
from auth_svc.opaque_tokens import ID_PATTERN, TENANT_PATTERN
from meshkit import secrets

_PREFIX = "tms"
_NAME = re.compile(
    rf"(?P<tenant>{TENANT_PATTERN})_(?P<id>{ID_PATTERN})(?:-(?P<generation>[1-9][0-9]{{0,8}}))?"
)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What a request is signed with: an API key, by one of its secrets.

    Attributes:
        tenant: the key's.
        key_id: the key.
        generation: of the secret.
    """

    tenant: str
    key_id: str
    generation: int

    @property
    def name(self) -> str:
        """Return how requests name it."""
        return f"{self.tenant}_{credential_id(self.key_id, self.generation)}"

    @classmethod
    def parse(cls, name: str) -> "SigningKey | None":
        """Return the key of a name, None when nothing has such a name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        key = cls(match["tenant"], match["id"], int(match["generation"] or 1))
        return key if key.name == name else None

    def secret(self, root: bytes) -> bytes:
        """Return what the HMAC is made with: 64 hexadecimal digits.

        Args:
            root: the mesh's root secret.
        """
        return secrets.derive(root, f"request-signing/{self.name}").hex().encode()

    def text(self, root: bytes) -> str:
        """Return name and secret as their owner gets them."""
        return f"{_PREFIX}_{self.name}_{self.secret(root).decode()}"
