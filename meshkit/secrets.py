"""Secrets derived from the one root secret of a mesh."""

import base64

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ROOT_BYTES = 32


def decode_root(text: str) -> bytes:
    """Return the root secret's bytes from its base64url text.

    Raises:
        ValueError: it is not base64url of at least 32 bytes.
    """
    root = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(root) < ROOT_BYTES:
        raise ValueError(f"the mesh secret must have at least {ROOT_BYTES} bytes")
    return root


def derive(root: bytes, purpose: str) -> bytes:
    """Return 32 bytes for one purpose (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"twinmesh/{purpose}".encode()).derive(root)


def derive_text(root: bytes, purpose: str) -> str:
    """Return a derived secret as unpadded base64url, for passwords."""
    return base64.urlsafe_b64encode(derive(root, purpose)).rstrip(b"=").decode()
