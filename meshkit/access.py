"""How a server knows callers, services by certificates and others by tokens, and who accounts for them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from meshkit.audit import AuditTrail
from meshkit.client import fetch_keys_from, fetch_revocations_from, send_audit_to, service_channel
from meshkit.clock import Clock
from meshkit.config import ServiceSettings
from meshkit.identity import TokenVerifier
from meshkit.revocations import Revocations
from meshkit.service_identity import ServiceIdentity


@dataclass(frozen=True, slots=True)
class Door:
    """What a server needs to let callers in.

    Attributes:
        identity: its own, and whom it believes.
        verifier: proves bearer tokens.
        audit: takes the account of calls.
    """

    identity: ServiceIdentity
    verifier: TokenVerifier
    audit: AuditTrail


@dataclass(frozen=True, slots=True)
class AuthDoor(Door):
    """A door that auth_svc is behind.

    Attributes:
        auth_channel: to auth_svc.
        revocations: as auth_svc lists them.
    """

    auth_channel: grpc.aio.Channel
    revocations: Revocations


def own_identity(settings: ServiceSettings, service: str) -> ServiceIdentity:
    """Return the identity that a service was given.

    Raises:
        ValueError: it is none, or another service's.
    """
    folder = settings.identity_dir
    try:
        identity = ServiceIdentity(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"TWINMESH_IDENTITY_DIR={folder} holds no identity: {error}; `twinmesh ca issue` writes one"
        ) from error
    if identity.name.name != service:
        raise ValueError(
            f"TWINMESH_IDENTITY_DIR={folder} is the identity of {identity.name.name}, not of {service}"
        )
    return identity


@asynccontextmanager
async def access(settings: ServiceSettings, *, service: str, clock: Clock) -> AsyncIterator[AuthDoor]:
    """Know callers while the context is open.

    Args:
        settings: the service's.
        service: its name.
        clock: tells when tokens end.

    Raises:
        ValueError: it was not given its identity.
    """
    identity = own_identity(settings, service)
    async with (
        service_channel(settings.auth_address, service="auth_svc", identity=identity) as auth_channel,
        (revocations := Revocations(fetch=fetch_revocations_from(auth_channel), clock=clock)).polling(),
        AuditTrail(send=send_audit_to(auth_channel), clock=clock) as audit,
    ):
        verifier = TokenVerifier(
            fetch_keys=fetch_keys_from(auth_channel), revocations=revocations, clock=clock
        )
        yield AuthDoor(identity, verifier, audit, auth_channel, revocations)
