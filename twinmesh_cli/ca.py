"""`twinmesh ca`: the authority whose certificates devices and servers have."""

import asyncio
import signal
import sys
from datetime import UTC
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from cryptography import x509

from gateway.settings import Upstream
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, read_authority
from meshkit.ca.identities import Identities, Place
from meshkit.callers import GATEWAY
from meshkit.embedded import PartFailedError
from twinmesh_cli.home import Home
from twinmesh_cli.settings import LauncherSettings, load_settings

_PART = "ca"
# Who has a certificate wherever the mesh runs. The gateway's is made last.
MEMBERS = (*(each.value for each in Upstream), "maintenance", GATEWAY)

ca_app = typer.Typer(help="Make and show the CA of this installation.", no_args_is_help=True)


@ca_app.command()
def init() -> None:
    """Make a CA in TWINMESH_CA_DIR; `twinmesh up` does so by itself where there is none."""
    settings = load_settings()
    folder = ca_folder(settings, Home(settings.home))
    try:
        make_authority(folder, settings.trust_domain)
    except FileExistsError:
        _fail(f"{folder} is there already; certificates of a CA that is replaced are good no more")
    except OSError as error:
        _fail(f"TWINMESH_CA_DIR={folder} cannot be made: {error.strerror}")
    print(f"made the CA of {settings.trust_domain} in {folder}")
    print(f"It signs without {folder / 'root.key.pem'}: move that to where nobody finds it.")


@ca_app.command()
def show(
    out: Annotated[Path | None, typer.Option(help="Write the certificates to this file.")] = None,
) -> None:
    """Print the certificates of the CA, PEM: by them devices know this installation's servers."""
    settings = load_settings()
    try:
        authority = read_authority(ca_folder(settings, Home(settings.home)))
    except (OSError, ValueError) as error:
        _fail(f"there is no CA to show: {error}")
    if out is not None:
        out.write_bytes(authority.bundle)
        return
    for certificate in x509.load_pem_x509_certificates(authority.bundle):
        until = certificate.not_valid_after_utc.astimezone(UTC).date()
        print(f"{certificate.subject.rfc4514_string()}, until {until}", file=sys.stderr)
    sys.stdout.write(authority.bundle.decode())


@ca_app.command()
def issue(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Each service's goes into one by its name.")
    ],
) -> None:
    """Issue the certificates of services and the gateway, and new ones in time until it is stopped.

    `twinmesh up` does so by itself; this is for containers. The CA is made where there is none.
    """
    settings = load_settings()
    try:
        authority = authority_for(settings, Home(settings.home))
        places = {name: Place(folder / name) for name in MEMBERS}
        for place in places.values():
            place.folder.mkdir(parents=True, exist_ok=True)
        identities = Identities(authority, places, tell=lambda text: print(text, file=sys.stderr, flush=True))
        identities.issue()
    except (PartFailedError, OSError) as error:
        _fail(str(error))
    print(f"issued certificates for {', '.join(places)}", flush=True)
    asyncio.run(_renew(identities))


async def _renew(identities: Identities) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with identities.renewing():
        await stop.wait()


def ca_folder(settings: LauncherSettings, home: Home) -> Path:
    """Where the CA of an installation is."""
    return settings.ca_dir or home.ca


def authority_for(settings: LauncherSettings, home: Home) -> CertificateAuthority:
    """The CA of an installation, made when there is none.

    Raises:
        PartFailedError: it cannot be made or used.
    """
    folder = ca_folder(settings, home)
    try:
        if not folder.exists():
            make_authority(folder, settings.trust_domain)
        authority = read_authority(folder)
    except (OSError, ValueError) as error:
        raise PartFailedError(
            _PART, f"the CA in {folder} cannot be used: {error}", advice="TWINMESH_CA_DIR names its folder."
        ) from error
    asked = settings.trust_domain
    if "trust_domain" in settings.model_fields_set and asked != authority.trust_domain:
        raise PartFailedError(
            _PART,
            f"the CA in {folder} is of trust domain {authority.trust_domain}, not {asked}",
            advice="Unset TWINMESH_TRUST_DOMAIN, or name another folder in TWINMESH_CA_DIR.",
        )
    return authority


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
