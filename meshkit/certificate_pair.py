"""A certificate chain and its private key in two files, which somebody may replace at any time."""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """Both as they were read, PEM.

    Attributes:
        certificate: the chain, a server's own certificate first.
        key: the private key of that.
    """

    certificate: bytes
    key: bytes

    @property
    def leaf(self) -> x509.Certificate:
        """Return the server's own certificate."""
        return x509.load_pem_x509_certificate(self.certificate)


def read_pair(certificate: Path, key: Path) -> CertificatePair:
    """Read both files.

    Raises:
        ValueError: one cannot be read, is not PEM or has a password, or they do not belong together, as for
            a moment while they are replaced.
    """
    try:
        pair = CertificatePair(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    try:
        leaf = pair.leaf
    except ValueError as error:
        raise ValueError(f"{certificate} holds no certificate in PEM: {error}") from error
    try:
        private = load_pem_private_key(pair.key, password=None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} holds no private key in PEM without a password: {error}") from error
    if leaf.public_key() != private.public_key():
        raise ValueError(f"{key} is not the private key of the first certificate in {certificate}")
    return pair
