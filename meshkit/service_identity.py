"""Who a process is among the services of the mesh, by its certificate, and who others are by theirs.

A process has a folder with two files, which are replaced by a rename while it runs:

    identity.pem      its private key, its certificate, and the issuing CA's behind it
    authorities.pem   the certificates of the CA: whom it believes
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshkit.ca.authority import uris
from meshkit.ca.keys import private_pem_of
from meshkit.ca.names import ServiceName
from meshkit.errors import Unauthenticated
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
IDENTITY, AUTHORITIES = "identity.pem", "authorities.pem"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate chain, its private key, and whom to believe, PEM; and who that makes its holder."""

    chain: bytes
    key: bytes
    authorities: bytes
    name: ServiceName


class _Version(NamedTuple):
    inode: int
    modified_ns: int


class ServiceIdentity:
    """The identity in a folder, as it is now. May be asked by any thread.

    Args:
        folder: with the two files.

    Raises:
        OSError: a file cannot be read.
        ValueError: they are not the identity of a service.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading = threading.Lock()
        self._version = self._look()
        self._told = ""
        self._credentials = _read(folder)
        self.name = self._credentials.name

    def present(self) -> Credentials:
        """Return what there is now: the same object until the files are replaced.

        What cannot be read leaves it as it was.
        """
        with self._reading:
            try:
                version = self._look()
                if version != self._version:
                    self._take(_read(self._folder))
                    self._version, self._told = version, ""
            except (OSError, ValueError) as error:
                # Looked at again with the next call; told once.
                if str(error) != self._told:
                    self._told = str(error)
                    _log.warning("the identity is not read anew", folder=str(self._folder), error=self._told)
            return self._credentials

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a server shows and asks for: each new connection meets the present certificate."""
        shown = self.present()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            present = self.present()
            if present is shown:
                return None
            shown = present
            return _configuration(present)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown),
            renewed,  # type: ignore[arg-type] # grpc-stubs do not know that None changes nothing.
            require_client_authentication=True,
        )

    def caller(self, context: "ConnectedContext") -> str:
        """Return the name of the service that calls.

        Raises:
            Unauthenticated: CALLER_UNKNOWN, the certificate is of no service of this trust domain.
        """
        name = _service_among(tuple(context.peer_identities() or ()), self.name.trust_domain)
        if name is None:
            raise Unauthenticated(
                "services are called with the certificate of a service of this mesh; "
                "others come in by the gateway",
                reason=ErrorReason.ERROR_REASON_CALLER_UNKNOWN,
            )
        return name

    def _look(self) -> _Version:
        found = (self._folder / IDENTITY).stat()
        return _Version(found.st_ino, found.st_mtime_ns)

    def _take(self, read: Credentials) -> None:
        if read.name != self.name:
            raise ValueError(f"it became {read.name.uri} and was {self.name.uri}")
        self._credentials = read


class ConnectedContext(Protocol):
    """What is asked of a call."""

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names in the certificate of the peer, which the handshake has verified."""
        ...


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Return what a client shows and believes."""
    return grpc.ssl_channel_credentials(credentials.authorities, credentials.key, credentials.chain)


def channel_options(service: str) -> list[tuple[str, str]]:
    """Return the options by which a channel takes nobody else for a service, wherever it runs."""
    return [("grpc.ssl_target_name_override", service)]


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.key, credentials.chain)], credentials.authorities
    )


def _read(folder: Path) -> Credentials:
    content = (folder / IDENTITY).read_bytes()
    certificates = x509.load_pem_x509_certificates(content)
    return Credentials(
        chain=b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates),
        key=private_pem_of(content),
        authorities=(folder / AUTHORITIES).read_bytes(),
        name=_service_of(certificates),
    )


def _service_of(certificates: Sequence[x509.Certificate]) -> ServiceName:
    names = uris(certificates[0])
    if len(names) != 1:
        raise ValueError(f"{IDENTITY} does not name one service")
    return ServiceName.parse(names[0])


@lru_cache(maxsize=256)
def _service_among(identities: tuple[bytes, ...], trust_domain: str) -> str | None:
    """Return the service of a trust domain that a certificate names; of devices and servers there is none."""
    for each in identities:
        try:
            found = ServiceName.parse(each.decode())
        except ValueError:  # Also what is no UTF-8.
            continue
        if found.trust_domain == trust_domain:
            return found.name
    return None
