"""The folder of what Envoy goes by: whom it trusts at its listener for devices, and who it is."""

import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from gateway import devices, mesh_tls
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import publish
from meshkit.ca.identities import Place
from meshkit.ca.keys import private_pem
from meshkit.embedded.account import unprivileged_account
from meshkit.embedded.placement import data_folder, write_private
from meshkit.nats_server import Tls
from twinmesh_cli.settings import LauncherSettings

# Made anew at each start.
_SERVER_LIFE = timedelta(days=825)


def make_trust(settings: LauncherSettings, home: Path, authority: CertificateAuthority) -> Place:
    """Fill the folder with all but the CRL, which auth_svc keeps there, and Envoy's identity.

    Raises:
        OSError: it cannot be written.
    """
    account = unprivileged_account()
    folder = data_folder(home, "trust", account)
    certificate, key = server_certificate(authority, server_names(settings))
    publish(folder / devices.CA, authority.bundle)
    publish(folder / devices.SERVER_CERTIFICATE, certificate)
    write_private(folder / devices.SERVER_KEY, key, account)
    mesh_tls.write_secrets(folder)
    secret = devices.trust_secret(folder, authority.trust_domain)
    publish(folder / devices.TRUST, json.dumps(secret, indent=1).encode())
    return Place(folder, account)


def mqtt_tls(settings: LauncherSettings, trust: Path) -> Tls | None:
    """The files by which MQTT is encrypted and devices are known there, None when it is not."""
    client_authority = str(trust / devices.CA) if settings.mqtt_client_certificates else ""
    if settings.mqtt_tls_certificate is not None and settings.mqtt_tls_key is not None:
        return Tls(str(settings.mqtt_tls_certificate), str(settings.mqtt_tls_key), client_authority)
    if not client_authority:
        return None
    return Tls(str(trust / devices.SERVER_CERTIFICATE), str(trust / devices.SERVER_KEY), client_authority)


def server_certificate(authority: CertificateAuthority, names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return the chain of a new certificate of a server and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    signed = authority.issue_for_server(names, key.public_key(), now=datetime.now(UTC), life=_SERVER_LIFE)
    return authority.chain(signed).encode(), private_pem(key)


def server_names(settings: LauncherSettings) -> list[str]:
    """The names and addresses by which devices may know this machine."""
    given = [name.strip() for name in settings.server_names.split(",") if name.strip()]
    return list(dict.fromkeys([*given, socket.gethostname(), "localhost", "127.0.0.1", "::1", settings.bind]))
