"""Certificates by which the parts of a mesh know each other, and the launcher's own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.identities import Identities, Place
from meshkit.callers import GATEWAY
from meshkit.service_identity import ServiceIdentity, channel_credentials, channel_options
from twinmesh_cli.ca import MEMBERS
from twinmesh_cli.home import Home

LAUNCHER = "launcher"


@asynccontextmanager
async def issued_identities(
    authority: CertificateAuthority, home: Home, *, gateway: Place, tell: Callable[[str], None]
) -> AsyncIterator[None]:
    """Give every part its certificate, and new ones in time while the context is open.

    Args:
        authority: signs them.
        home: where those are that run as the launcher does.
        gateway: where Envoy's is.
        tell: takes a line for people when one cannot be renewed.

    Raises:
        OSError: one cannot be written.
    """
    identities = Identities(authority, _places(home, gateway), tell=tell)
    identities.issue()
    async with identities.renewing():
        yield


def _places(home: Home, gateway: Place) -> dict[str, Place]:
    home.identities.mkdir(mode=0o700, exist_ok=True)
    own = {name: Place(_made(home.identities / name)) for name in (*MEMBERS, LAUNCHER) if name != GATEWAY}
    return {**own, GATEWAY: gateway}


def connect(address: str, *, service: str, identity: ServiceIdentity) -> grpc.Channel:
    """Open a channel to one process of a service."""
    credentials = channel_credentials(identity.present())
    return grpc.secure_channel(address, credentials, options=channel_options(service))


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
