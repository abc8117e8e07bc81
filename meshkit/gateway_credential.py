"""What Envoy and auth_svc agree on: how it is known, and how it tells of streams."""

from meshkit import secrets

HEADER = "x-gateway-credential"
# With a request whose rpc is a stream, among what its route says of itself.
STREAM = "stream"


def derive(root: bytes) -> str:
    """Return what Envoy sends in HEADER, derived from the root secret."""
    return secrets.derive_text(root, "gateway-credential")
