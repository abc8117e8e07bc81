"""The home folder: where a mesh keeps data, secrets, logs and the state of its launcher."""

import base64
import fcntl
import os
import secrets as random_secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshkit import secrets
from meshkit.embedded import unprivileged_account
from twinmesh_cli.settings import LauncherSettings


class HomeBusyError(Exception):
    """Another launcher has this home."""


class Home:
    """Paths of one home folder; nothing is made before `make`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self.state = root / "state.json"
        self.seeded = root / "seeded"
        self.traces = root / "traces.sqlite"
        self.metrics = root / "metrics.sqlite"
        self.archive = root / "archive"
        self.ca = root / "ca"
        self.identities = root / "identities"

    def make(self) -> None:
        """Makes the folder. Servers of a root launcher must get through it; nobody else may look inside."""
        if not self.root.exists():
            self.root.mkdir(parents=True)
            self.root.chmod(0o700 if unprivileged_account() is None else 0o711)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def log(self, part: str) -> Path:
        """The log file of a part."""
        return self.logs / f"{part}.log"

    def mesh_secret(self) -> str:
        """The root secret kept here; generated at the first call."""
        folder = self.root / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / "mesh"
        if not file.exists():
            text = base64.urlsafe_b64encode(random_secrets.token_bytes(secrets.ROOT_BYTES)).decode()
            filling = file.with_suffix(".new")
            with os.fdopen(os.open(filling, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as new:
                new.write(text)
            filling.replace(file)
        return file.read_text().strip()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other launchers out; the kernel lets go when this process ends, however it ends.

        Raises:
            HomeBusyError: somebody else has it.
        """
        with (self.root / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise HomeBusyError(str(self.root)) from error
            yield

    def is_locked(self) -> bool:
        """Whether a launcher has this home now."""
        if not (self.root / "lock").exists():
            return False
        try:
            with self.locked():
                return False
        except HomeBusyError:
            return True


def mesh_secret(settings: LauncherSettings, home: Home) -> str:
    """The root secret: the one that is set, else the home's own."""
    if settings.mesh_secret is not None:
        return settings.mesh_secret.get_secret_value()
    return home.mesh_secret()
