"""How auth_svc knows that it is Envoy who tells it of a device's certificate."""

from meshkit import secrets

HEADER = "x-gateway-credential"


def derive(root: bytes) -> str:
    """Return what Envoy sends in HEADER, derived from the root secret."""
    return secrets.derive_text(root, "gateway-credential")
