"""The private key of a CA, wherever it is: in a file, in Vault, in a PKCS#11 token."""

import os
from pathlib import Path
from typing import NoReturn, Protocol, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class CaKey(Protocol):
    """A P-256 key that signs."""

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        ...

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature of what is to be signed: ECDSA with SHA-256, in DER. May block."""
        ...


class FileKey:
    """A key in a PEM file that only its owner reads.

    Args:
        key: the private half.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a key.

        Raises:
            ValueError: it is no P-256 key, or others than its owner may read it.
            OSError: it cannot be read.
        """
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path} can be read by others than its owner; chmod 600 it")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
            raise ValueError(f"{path} is no P-256 key")  # noqa: TRY004 - of a file, not a type
        return cls(key)

    @classmethod
    def generate(cls) -> Self:
        """Return a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def write(self, path: Path) -> None:
        """Write it, mode 0600.

        Raises:
            FileExistsError: there is something already.
        """
        content = private_pem(self._key)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """See CaKey."""
        return self._key.public_key()

    def sign(self, tbs: bytes) -> bytes:
        """See CaKey."""
        return self._key.sign(tbs, ec.ECDSA(hashes.SHA256()))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM (PKCS#8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_pem_of(content: bytes) -> bytes:
    """Return the private key in PEM that has other things beside it.

    Raises:
        ValueError: there is none.
    """
    key = serialization.load_pem_private_key(content, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the private key is none of an elliptic curve")  # noqa: TRY004 - of a file, not a type
    return private_pem(key)


class SigningKey(ec.EllipticCurvePrivateKey):
    """A CaKey in the form that the builders of certificates ask for, of which they use `sign` only.

    Args:
        key: signs.
    """

    def __init__(self, key: CaKey) -> None:
        self._key = key

    def sign(self, data: object, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return the key's signature."""
        return self._key.sign(bytes(data))  # type: ignore[call-overload]

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._key.public_key()

    @property
    def curve(self) -> ec.EllipticCurve:
        """Return P-256."""
        return self._key.public_key().curve

    @property
    def key_size(self) -> int:
        """Return its bits."""
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Not for a key that signs."""
        raise NotImplementedError

    def private_numbers(self) -> NoReturn:
        """Nobody gets the private half out."""
        raise NotImplementedError

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        """Nobody gets the private half out."""
        raise NotImplementedError

    def __copy__(self) -> "SigningKey":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "SigningKey":
        return self
