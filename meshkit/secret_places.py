"""Where settings come from beside the environment: files and HashiCorp Vault, by environment names.

TWINMESH_<NAME>_FILE     the file that holds the setting
TWINMESH_SECRETS_DIR     a folder with a file for each setting, named TWINMESH_<NAME>, as CSI mounts it
Vault KV version 2       one secret whose keys are TWINMESH_<NAME>
"""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from meshkit.addresses import is_loopback

SECRETS_DIR = "TWINMESH_SECRETS_DIR"
_VAULT_TIMEOUT_S = 5


class SettingsUnreadable(Exception):
    """A place of settings cannot be read; the text says which and why, and holds no value."""


def from_files(name: str) -> str | None:
    """Return a setting that stands in a file, without the line's end; None when no file is named.

    Args:
        name: the setting's environment name.

    Raises:
        SettingsUnreadable: the file that is named, or the folder, cannot be read.
    """
    variable = f"{name}_FILE"
    if named := os.environ.get(variable):
        return _text(Path(named), variable)
    if folder := os.environ.get(SECRETS_DIR):
        if not Path(folder).is_dir():
            raise SettingsUnreadable(f"{SECRETS_DIR}: {folder} is no folder")
        file = Path(folder) / name
        return _text(file, SECRETS_DIR) if file.exists() else None
    return None


def from_vault(address: str, *, token: str, path: str, authorities: Path | None) -> Mapping[str, str]:
    """Return the texts that a secret of Vault holds, by environment names.

    Args:
        address: https://host:port; without TLS only on this machine.
        token: may read the secret, and needs nothing else.
        path: of the engine and the secret in it, "secret/twinmesh".
        authorities: PEM file of who signs Vault's certificate; the usual ones when None.

    Raises:
        SettingsUnreadable: it does not answer, refuses, or has no such secret.
    """
    _check_address(address)
    engine, _, secret = path.partition("/")
    if not secret:
        raise SettingsUnreadable(f"TWINMESH_VAULT_PATH: {path!r} is not engine/secret")
    try:
        # A dependency of those who have a Vault.
        import hvac  # noqa: PLC0415
    except ImportError:
        raise SettingsUnreadable(
            "TWINMESH_VAULT_ADDRESS: pip install 'twinmesh[vault]' reads from Vault"
        ) from None
    client = hvac.Client(
        url=address,
        token=token,
        verify=str(authorities) if authorities is not None else True,
        timeout=_VAULT_TIMEOUT_S,
        # The token goes to whom the operator named, nowhere else.
        allow_redirects=False,
    )
    try:
        answer = client.secrets.kv.v2.read_secret_version(
            path=secret, mount_point=engine, raise_on_deleted_version=True
        )
        told = answer["data"]["data"]
        return {name: value for name, value in told.items() if isinstance(value, str)}
    except (hvac.exceptions.VaultError, OSError) as error:
        # The text of some of them quotes what was sent.
        raise SettingsUnreadable(f"Vault at {address}: {type(error).__name__} at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsUnreadable(
            f"Vault at {address}: its answer at {path} is not that of a KV engine, version 2"
        ) from None
    finally:
        client.adapter.close()


def _text(file: Path, variable: str) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise SettingsUnreadable(f"{variable}: {file} cannot be read: {type(error).__name__}") from None


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    raise SettingsUnreadable(
        "TWINMESH_VAULT_ADDRESS: must begin with https:// unless Vault is on this machine"
    )
