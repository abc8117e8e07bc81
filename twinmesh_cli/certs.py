"""`twinmesh certs`: certificates of devices."""

import asyncio
import os
import sys
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import json_format
from rich.table import Column, Table

from meshkit.ca.keys import private_pem
from twinmesh.auth.v1 import device_certificate_service_pb2 as contract
from twinmesh.auth.v1 import device_certificate_service_pb2_grpc as contract_grpc
from twinmesh_cli.session import explain, fail, run
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console

_PAGE = 1_000  # the largest that the server gives
_CALL_TIMEOUT_S = 60.0

certs_app = typer.Typer(help="Issue, renew, list and revoke certificates of devices.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(metavar="ID", help="The certificate's id.")]
_Csr = Annotated[Path | None, typer.Option(help="The device's own request, PEM; without it a key is made.")]
_Out = Annotated[Path | None, typer.Option(help="Where the certificate goes; DEVICE.pem if unset.")]


@certs_app.command()
def issue(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.")],
    csr: _Csr = None,
    out: _Out = None,
    days: Annotated[
        int, typer.Option(min=0, max=825, help="Days that it is good for; 0: as the installation has it.")
    ] = 0,
) -> None:
    """Issue a certificate: for a CSR, or for a new key, which goes beside it into DEVICE.key.pem."""
    out = out or Path(f"{device}.pem")
    text, key = _request(csr, device)
    request = contract.IssueDeviceCertificateRequest(device_id=device, csr=text, valid_days=days)
    made = run(lambda session: session.call(_stub(session.channel).IssueDeviceCertificate, request))
    _keep(made, key, out)


@certs_app.command()
def renew(
    certificate: Annotated[Path, typer.Option(help="The certificate, PEM, with the CA's behind it.")],
    key: Annotated[Path, typer.Option(help="Its private key, PEM.")],
    ca: Annotated[Path, typer.Option(help="What the gateway is known by: `twinmesh ca show`.")],
    csr: _Csr = None,
    out: _Out = None,
    gateway: Annotated[str, typer.Option(help="host:port of the gateway's listener for devices.")] = "",
) -> None:
    """Renew a certificate as its device does: by showing it. The old one stays good until it ends."""
    address = gateway or load_settings().device_address
    try:
        credentials = grpc.ssl_channel_credentials(
            ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    text, new_key = _request(csr, certificate.stem)
    request = contract.RenewDeviceCertificateRequest(csr=text)

    async def renewed() -> contract.DeviceCertificate:
        async with grpc.aio.secure_channel(address, credentials) as channel:
            try:
                made: contract.DeviceCertificate = await _stub(channel).RenewDeviceCertificate(
                    request, timeout=_CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                fail(explain(error, gateway=address))
            return made

    made = asyncio.run(renewed())
    _keep(made, new_key, out or Path(f"{made.device_id}.pem"))


@certs_app.command("list")
def list_certificates(
    device: Annotated[str, typer.Option(help="Only of this device.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 100,
) -> None:
    """List certificates, revoked and expired ones among them."""
    request = contract.ListDeviceCertificatesRequest(device_id=device)
    found, is_whole = run(
        lambda session: session.listed(
            _stub(session.channel).ListDeviceCertificates,
            request,
            lambda page: page.device_certificates,
            limit=limit,
            page_size=_PAGE,
        )
    )
    table = Table(
        Column("id", no_wrap=True), "device", "expires", "revoked", "creator", box=None, pad_edge=False
    )
    for each in found:
        revoked = each.revoke_time.ToDatetime(UTC).isoformat() if each.HasField("revoke_time") else ""
        expires = each.expire_time.ToDatetime(UTC).isoformat()
        table.add_row(each.id, each.device_id, expires, revoked, each.creator)
    table_console().print(table)
    if not is_whole:
        print(f"there are more than these {limit:,}; see --limit and --device", file=sys.stderr)


@certs_app.command()
def show(certificate_id: _Id) -> None:
    """Print a certificate as JSON."""
    request = contract.GetDeviceCertificateRequest(id=certificate_id)
    found = run(lambda session: session.call(_stub(session.channel).GetDeviceCertificate, request))
    print(json_format.MessageToJson(found))


@certs_app.command()
def revoke(certificate_id: _Id) -> None:
    """Revoke a certificate for good, with all that were renewed from it."""
    request = contract.RevokeDeviceCertificateRequest(id=certificate_id)
    answer = run(lambda session: session.call(_stub(session.channel).RevokeDeviceCertificate, request))
    print("\n".join(f"revoked {each}" for each in answer.ids) or "it was revoked before")


def _stub(channel: grpc.aio.Channel) -> Any:
    return contract_grpc.DeviceCertificateServiceStub(channel)


def _request(csr: Path | None, name: str) -> tuple[str, ec.EllipticCurvePrivateKey | None]:
    """Return a CSR, and the key that was made for it, None when its maker has it."""
    if csr is not None:
        try:
            return csr.read_text(), None
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{csr}: {error}")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode(), key


def _keep(made: contract.DeviceCertificate, key: ec.EllipticCurvePrivateKey | None, out: Path) -> None:
    """Write the certificate, and the key that was made for it, where nobody else reads it."""
    if key is not None:
        path = out.with_name(f"{out.stem}.key.pem")
        filling = path.with_name(f"{path.name}.new")
        filling.unlink(missing_ok=True)
        with os.fdopen(os.open(filling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private_pem(key))
        filling.replace(path)
        print(f"private key: {path}")
    out.write_text(made.chain)
    until = made.expire_time.ToDatetime(UTC).isoformat()
    print(f"certificate: {out} ({made.id}, {made.uri}, until {until})")
