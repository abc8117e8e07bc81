"""A CA in a folder: two certificates that anybody may read, and their keys, which nobody else may.

root.pem     root.key.pem      signs issuing CAs; may be kept elsewhere once the folder is made
issuing.pem  issuing.key.pem   signs certificates of devices and servers, and the CRL
"""

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshkit.ca.authority import CertificateAuthority, issuing_certificate, root_certificate
from meshkit.ca.keys import FileKey

_ROOT, _ISSUING = "root.pem", "issuing.pem"
_ROOT_KEY, _ISSUING_KEY = "root.key.pem", "issuing.key.pem"


def make_authority(folder: Path, trust_domain: str) -> None:
    """Make a folder with a new CA, whole or not at all.

    Raises:
        FileExistsError: there is something already.
        OSError: it cannot be written.
    """
    now = datetime.now(UTC)
    root_key, issuing_key = FileKey.generate(), FileKey.generate()
    root = root_certificate(root_key, trust_domain, now=now)
    issuing = issuing_certificate(issuing_key.public_key(), root, root_key, now=now)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    filling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # Mode 0700.
    try:
        root_key.write(filling / _ROOT_KEY)
        issuing_key.write(filling / _ISSUING_KEY)
        for name, certificate in ((_ROOT, root), (_ISSUING, issuing)):
            (filling / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        filling.rename(folder)
    except OSError:
        shutil.rmtree(filling, ignore_errors=True)
        raise


def read_authority(folder: Path) -> CertificateAuthority:
    """Read the issuing CA of a folder. The root's key is not looked at.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: what is in them is not a CA.
    """
    return CertificateAuthority(
        certificate=x509.load_pem_x509_certificate((folder / _ISSUING).read_bytes()),
        root=x509.load_pem_x509_certificate((folder / _ROOT).read_bytes()),
        key=FileKey.read(folder / _ISSUING_KEY),
    )


def publish(path: Path, content: bytes) -> None:
    """Write a file that everybody may read, whole or not at all, by a rename, which Envoy watches for.

    The folder may belong to another account, so nothing that lies there is written through.
    """
    handle, filling = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)
    Path(filling).replace(path)
