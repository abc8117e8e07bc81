"""Identities of services: their certificates last a day, and are issued anew while everything runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import publish
from meshkit.ca.keys import private_pem
from meshkit.embedded.account import Account
from meshkit.embedded.placement import write_private
from meshkit.service_identity import AUTHORITIES, IDENTITY
from meshkit.tasks import background

LIFE = timedelta(hours=24)
_LOOK_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an identity is kept: in a folder that is there, for an account, None for one's own."""

    folder: Path
    account: Account | None = None


class Identities:
    """Issues the identities of one installation.

    Args:
        authority: signs them.
        places: by service.
        tell: takes a line for people when one cannot be renewed.
        now: tells the time.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        places: Mapping[str, Place],
        *,
        tell: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._authority = authority
        self._places = places
        self._tell = tell
        self._now = now

    def issue(self) -> None:
        """Issue all of them. May block.

        Raises:
            OSError: a file cannot be written.
        """
        for name, place in self._places.items():
            write_identity(self._authority, name, place, now=self._now())

    def renew(self) -> None:
        """Issue those again whose time is half over. What fails is told and left as it is. May block."""
        for name, place in self._places.items():
            try:
                if self._is_due(place):
                    write_identity(self._authority, name, place, now=self._now())
            except (OSError, ValueError) as error:
                self._tell(f"the certificate of {name} cannot be renewed: {error}; trying again")

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Renew them in time while the context is open."""

        async def renew() -> None:
            while True:
                # By the clock of the wall, since machines sleep.
                await asyncio.sleep(_LOOK_EVERY_S)
                await asyncio.to_thread(self.renew)

        async with background(renew(), name="renew-identities"):
            yield

    def _is_due(self, place: Place) -> bool:
        try:
            (certificate, *_) = x509.load_pem_x509_certificates((place.folder / IDENTITY).read_bytes())
        except (FileNotFoundError, ValueError):
            return True  # It is gone or damaged.
        return certificate.not_valid_after_utc - self._now() < LIFE / 2


def write_identity(
    authority: CertificateAuthority, name: str, place: Place, *, now: datetime, life: timedelta = LIFE
) -> None:
    """Issue an identity into its folder. May block.

    Raises:
        OSError: it cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue_for_service(name, key.public_key(), now=now, life=life)
    publish(place.folder / AUTHORITIES, authority.bundle)
    # One file, so that nobody meets a key and a certificate that do not belong together.
    content = private_pem(key) + authority.chain(certificate).encode()
    write_private(place.folder / IDENTITY, content, place.account)
