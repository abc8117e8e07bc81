"""Which doors of a mesh are encrypted, and by whose certificates."""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway import devices, mesh_tls
from meshkit import plaintext
from meshkit.addresses import is_loopback
from meshkit.ca.authority import CertificateAuthority
from meshkit.embedded import EmbeddedNats, PartFailedError, unprivileged_account
from meshkit.embedded.placement import data_folder
from meshkit.nats_server import Tls
from twinmesh_cli.gateway_access import first_name
from twinmesh_cli.home import Home
from twinmesh_cli.settings import LauncherSettings
from twinmesh_cli.trust import LOOK_S, Trust, server_names

_ENVOY, _NATS = "envoy", "nats"


class _Door(NamedTuple):
    part: str
    variables: str
    name: str
    has_tls: bool
    allows_plaintext: bool


def notices(settings: LauncherSettings) -> Sequence[str]:
    """Return what to tell of doors that are open to other machines and not encrypted.

    Raises:
        PartFailedError: one would be, and nobody has said that this is wanted.
    """
    doors = [
        _Door(_ENVOY, "GATEWAY", "the gateway", settings.edge_files is not None, settings.gateway_plaintext)
    ]
    if settings.nats_url is None:
        has_tls = settings.mqtt_tls_certificate is not None or settings.mqtt_client_certificates
        doors.append(_Door(_NATS, "MQTT", "MQTT", has_tls, settings.mqtt_plaintext))
    for door in doors:
        problem = plaintext.refusal(
            door.variables, settings.bind, has_tls=door.has_tls, allows_plaintext=door.allows_plaintext
        )
        if problem:
            raise PartFailedError(door.part, f"TWINMESH_BIND={problem}")
    if is_loopback(settings.bind):
        return ()
    return [
        f"TWINMESH_BIND={settings.bind} is open to other machines, and {door.name} has no TLS of its own: "
        "only a proxy that ends TLS may reach it"
        for door in doors
        if not door.has_tls
    ]


def make_trust(settings: LauncherSettings, home: Home, authority: CertificateAuthority) -> Trust:
    """Make the folder of Envoy's certificates, but for its identity, which is issued later.

    Raises:
        OSError: it cannot be written.
        PartFailedError: the certificate that is given cannot be used.
    """
    account = unprivileged_account()
    trust = Trust(
        data_folder(home.root, "trust", account),
        authority=authority,
        names=server_names(settings.server_names, settings.bind),
        edge=settings.edge_files,
        account=account,
    )
    try:
        trust.make()
    except ValueError as error:
        raise PartFailedError(
            _ENVOY,
            f"the gateway's certificate cannot be used: {error}",
            advice="TWINMESH_GATEWAY_TLS_CERTIFICATE and TWINMESH_GATEWAY_TLS_KEY name PEM files.",
        ) from error
    mesh_tls.write_secrets(trust.folder)
    return trust


def mqtt_tls(settings: LauncherSettings, trust: Path) -> Tls | None:
    """The files by which MQTT is encrypted and devices are known there, None when it is not."""
    client_authority = str(trust / devices.CA) if settings.mqtt_client_certificates else ""
    if settings.mqtt_tls_certificate is not None and settings.mqtt_tls_key is not None:
        return Tls(str(settings.mqtt_tls_certificate), str(settings.mqtt_tls_key), client_authority)
    if not client_authority:
        return None
    return Tls(str(trust / devices.SERVER_CERTIFICATE), str(trust / devices.SERVER_KEY), client_authority)


async def keep(trust: Trust, nats: EmbeddedNats | None, *, tell: Callable[[str], None]) -> None:
    """Take over certificates that were replaced and renew the mesh's own, until cancelled.

    Args:
        trust: of Envoy.
        nats: whose MQTT may have the same certificate or another; None: it is not ours.
        tell: takes a line for people when it fails, once for each cause.
    """
    refreshing = [trust.renew, trust.take_over, *([nats.refresh_tls] if nats is not None else [])]
    told: dict[Callable[[], None], str] = {}
    while True:
        await asyncio.sleep(LOOK_S)
        for refresh in refreshing:
            problem = ""
            try:
                refresh()
            except (OSError, ValueError, PartFailedError) as error:
                problem = f"a certificate was not replaced, the former one stays: {error}"
            if problem and problem != told.get(refresh):
                tell(problem)
            told[refresh] = problem


def own_gateway(settings: LauncherSettings) -> ssl.SSLContext | bool:
    """How the launcher knows its own gateway, as httpx takes it: by the certificate itself, by any name."""
    if settings.edge_files is None:
        return True
    context = ssl.create_default_context(cafile=str(settings.edge_files[0]))
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def for_clients(settings: LauncherSettings) -> Mapping[str, str]:
    """Return what a client of the launcher's own is told of the gateway, by variable."""
    told = {"TWINMESH_GATEWAY": settings.client_address}
    if settings.gateway_tls_certificate is not None:
        told["TWINMESH_GATEWAY_AUTHORITIES"] = str(settings.gateway_tls_certificate)
        told["TWINMESH_GATEWAY_SERVER_NAME"] = first_name(settings.gateway_tls_certificate)
    return told
