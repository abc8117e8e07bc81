"""Devices with certificates in a mesh: what they have, and how they come in."""

import socket
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from meshkit.ca.authority import CertificateAuthority
from meshkit.testing.certificates import DeviceKey, csr, key_pem, new_key
from meshkit.testing.mesh import Mesh

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's certificate and key, in files.

    Attributes:
        certificate: PEM, with the issuing CA's behind it.
        key: PEM.
        id: of the certificate; "" of one that was not issued by auth_svc.
    """

    certificate: Path
    key: Path
    id: str = ""


def write_identity(
    folder: Path, name: str, chain: str, key: DeviceKey, *, certificate_id: str = ""
) -> Identity:
    """Write a certificate and its key."""
    made = Identity(folder / f"{name}.pem", folder / f"{name}.key.pem", certificate_id)
    made.certificate.write_text(chain)
    made.key.write_bytes(key_pem(key))
    return made


def issue(mesh: Mesh, token: str, device_id: str, folder: Path, *, key: DeviceKey | None = None) -> Identity:
    """Have a certificate issued by JSON."""
    key = key or new_key()
    answer = httpx.post(
        f"{mesh.url}/v1/deviceCertificates",
        json={"deviceId": device_id, "csr": csr(key)},
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
    )
    assert answer.is_success, answer.text
    made = answer.json()
    return write_identity(folder, made["id"], made["chain"], key, certificate_id=made["id"])


def revoke(mesh: Mesh, token: str, certificate_id: str) -> list[str]:
    """Revoke a certificate by JSON; returns the ids of those revoked."""
    answer = httpx.post(
        f"{mesh.url}/v1/deviceCertificates/{certificate_id}:revoke",
        json={},
        headers={"authorization": f"Bearer {token}"},
        timeout=30,
    )
    assert answer.is_success, answer.text
    ids: list[str] = answer.json()["ids"]
    return ids


def tls(mesh: Mesh, identity: Identity | None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Return how a device comes in: it knows the mesh by its CA."""
    context = ssl.create_default_context(cafile=str(mesh.home / "ca" / "root.pem"))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


@contextmanager
def device(mesh: Mesh, identity: Identity, **headers: str) -> Iterator[httpx.Client]:
    """Open a JSON client of a device."""
    base = f"https://{HOST}:{mesh.device_port}"
    with httpx.Client(base_url=base, verify=tls(mesh, identity), headers=headers, timeout=30) as client:
        yield client


def alert(mesh: Mesh, context: ssl.SSLContext, *, port: int = 0, wait_s: float = 30) -> str:
    """Come in anew, at the device port or another one, and return the alert that ends the connection.

    It is "" when none comes.

    Nothing is sent: in TLS 1.3 the server looks at a certificate when its client takes itself for
    connected, and what comes then may cost the client the alert.
    """
    with socket.create_connection((HOST, port or mesh.device_port), timeout=wait_s) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=HOST) as secure:
                secure.recv(1)
        except ssl.SSLError as error:
            return str(error)
        except TimeoutError:
            pass
    return ""


def signed(
    authority: CertificateAuthority, folder: Path, *, device_id: str, ended: timedelta = timedelta(0)
) -> Identity:
    """Return an identity that a CA has signed for a day behind auth_svc's back, now or to end before."""
    key, life = new_key(), timedelta(days=1)
    now = datetime.now(UTC) - (life + ended if ended else ended)
    name = authority.device_name("demo", device_id)
    made = authority.issue_for_device(name, key.public_key(), now=now, life=life)
    return write_identity(folder, uuid.uuid4().hex, authority.chain(made), key)


def reason(answer: httpx.Response) -> str:
    """Return the reason of a refusal."""
    details: list[dict[str, Any]] = answer.json()["details"]
    return str(next(each["reason"] for each in details if "reason" in each))
