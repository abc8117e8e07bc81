"""The folder of what Envoy's listeners go by: whom they trust, and who they are.

As a program it makes the folder and keeps the server's certificate current, for a gateway in a container:

    python -m twinmesh_cli.trust FOLDER
"""

import json
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from gateway import devices, tls
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import publish, read_authority
from meshkit.ca.identities import Place
from meshkit.ca.keys import private_pem
from meshkit.certificate_pair import CertificatePair, read_pair
from meshkit.config import Settings
from meshkit.embedded.account import Account
from meshkit.embedded.placement import write_private
from meshkit.runtime import read_settings

SERVER_LIFE = timedelta(days=90)
# Whoever looks every few seconds has a month to notice that it fails.
_RENEW_BEFORE = timedelta(days=30)
LOOK_S = 2.0
_EDGE_CERTIFICATE, _EDGE_KEY = "edge.pem", "edge.key.pem"


class Trust:
    """One such folder.

    Args:
        folder: where it is; all but its CRL, which auth_svc keeps there, is made here.
        authority: signs the certificate of the server.
        names: names and addresses by which devices know it.
        edge: certificate and key of the gateway's main port, somebody else's files; None: it has no TLS.
        account: who runs Envoy, None: whoever runs this.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: CertificateAuthority,
        names: Sequence[str],
        edge: tuple[Path, Path] | None = None,
        account: Account | None = None,
    ) -> None:
        self.folder = folder
        self._authority = authority
        self._names = names
        self._edge = edge
        self._edge_pair: CertificatePair | None = None
        self._account = account

    @property
    def edge_secret(self) -> Path | None:
        """Return the file of `GatewaySettings.tls`, None when the main port has no TLS."""
        return self.folder / tls.EDGE_SECRET if self._edge else None

    @property
    def place(self) -> Place:
        """Return where Envoy's identity is put."""
        return Place(self.folder, self._account)

    def make(self) -> None:
        """Fill the folder.

        Raises:
            OSError: it cannot be written.
            ValueError: the files of `edge` cannot be used.
        """
        publish(self.folder / devices.CA, self._authority.bundle)
        self._renew(datetime.now(UTC))
        self.take_over()
        secrets_of_envoy = {
            devices.TRUST: devices.trust_secret(self.folder, self._authority.trust_domain),
            # compose takes this file for the sign that all are there.
            devices.SERVER: devices.server_secret(self.folder),
        }
        if self._edge:
            secrets_of_envoy[tls.EDGE_SECRET] = tls.edge_secret(
                certificate=str(self.folder / _EDGE_CERTIFICATE), key=str(self.folder / _EDGE_KEY)
            )
        for name, secret in secrets_of_envoy.items():
            publish(self.folder / name, json.dumps(secret, indent=1).encode())

    def renew(self) -> None:
        """Renew the server's certificate when it ends within a month.

        Raises:
            OSError: the folder cannot be written.
        """
        now = datetime.now(UTC)
        ends = x509.load_pem_x509_certificate(
            (self.folder / devices.SERVER_CERTIFICATE).read_bytes()
        ).not_valid_after_utc
        # None outlives the CA.
        if ends - now < _RENEW_BEFORE and ends < self._authority.ends:
            self._renew(now)

    def take_over(self) -> None:
        """Take over the files of `edge` when they were replaced.

        Raises:
            OSError: the folder cannot be written.
            ValueError: they cannot be used; what was taken over before stays.
        """
        if not self._edge:
            return
        given = read_pair(*self._edge)
        if given != self._edge_pair:
            self._write(given, _EDGE_CERTIFICATE, _EDGE_KEY)
            self._edge_pair = given

    def _renew(self, now: datetime) -> None:
        made = server_certificate(self._authority, self._names, now=now)
        self._write(made, devices.SERVER_CERTIFICATE, devices.SERVER_KEY)

    def _write(self, pair: CertificatePair, certificate: str, key: str) -> None:
        """Each whole; Envoy goes on with the former pair until it has seen both."""
        write_private(self.folder / key, pair.key, self._account)
        publish(self.folder / certificate, pair.certificate)


def server_certificate(
    authority: CertificateAuthority, names: Sequence[str], *, now: datetime
) -> CertificatePair:
    """Return the chain of a new certificate of a server and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    signed = authority.issue_for_server(names, key.public_key(), now=now, life=SERVER_LIFE)
    return CertificatePair(authority.chain(signed).encode(), private_pem(key))


def server_names(given: str, *more: str) -> list[str]:
    """The names and addresses by which devices may know this machine.

    Args:
        given: what the operator lists, commas between them.
        more: others.
    """
    listed = [name.strip() for name in given.split(",") if name.strip()]
    return list(dict.fromkeys([*listed, socket.gethostname(), "localhost", "127.0.0.1", "::1", *more]))


class _TrustSettings(Settings):
    """What the folder of a gateway in a container needs."""

    ca_dir: Path = Field(description="Folder of the CA.")
    server_names: str = Field(
        "", description="Names and addresses by which devices know the gateway, commas between them."
    )


def main() -> None:
    """Make the folder that the command line names, and renew the server's certificate until stopped."""
    settings = read_settings("twinmesh_cli.trust", _TrustSettings)
    trust = Trust(
        Path(sys.argv[1]).absolute(),
        authority=read_authority(settings.ca_dir),
        names=server_names(settings.server_names),
    )
    trust.make()
    print(f"the certificates of the gateway are in {trust.folder}", flush=True)
    while True:
        time.sleep(LOOK_S)
        trust.renew()


if __name__ == "__main__":
    main()
