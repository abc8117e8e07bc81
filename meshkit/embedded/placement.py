"""Where data and binaries of embedded servers lie.

Normally data lies in the home folder and binaries where their wheel was installed.
A root caller drops to an unprivileged account, which may not be able to reach
either (a clone under /root, mode 0700). Then data lies in a folder of its own
under /var/lib/twinmesh, the home holding a symbolic link to it, and binaries are
copied there once per version.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from meshkit.embedded.account import Account, can_reach

SHARED_ROOT = Path("/var/lib/twinmesh")


def data_folder(home: Path, name: str, account: Account | None) -> Path:
    """The folder `name` for data of `account`, made (mode 0700, owned by it) if absent.

    The link in the home is what ties data to a home: a home that was moved keeps
    its data, and a new clone in the old place starts with none.
    """
    folder = home / name
    if folder.is_symlink() and folder.exists():
        return folder.resolve()
    if folder.is_dir():
        target = folder
    elif can_reach(account, home):
        folder.mkdir(mode=0o700)
        target = folder
    else:
        folder.unlink(missing_ok=True)
        target = _shared_data_folder(home, name)
        folder.symlink_to(target)
    if account is not None:
        os.chown(target, account.uid, account.gid)
    return target


def remove_data_folder(home: Path, name: str) -> None:
    """Deletes what `data_folder` made, wherever it lies."""
    folder = home / name
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def reachable_copy(*, label: str, sources: tuple[Path, ...], account: Account | None) -> Path:
    """The folder that holds `sources` (siblings) where `account` can run them.

    `label` names content that never changes (a distribution and its version), so a
    copy made earlier, by whichever checkout, is used again.
    """
    parent = sources[0].parent
    if all(can_reach(account, source) for source in sources):
        return parent
    target = _make_shared(SHARED_ROOT / "bin") / label
    if target.is_dir():
        return target
    # Filled under another name and renamed: nobody ever sees half a copy.
    filling = Path(tempfile.mkdtemp(prefix=f".{label}-", dir=target.parent))
    try:
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, filling / source.name, symlinks=True)
            else:
                shutil.copy2(source, filling / source.name)
        _open_for_reading(filling)
        filling.rename(target)
    except OSError:
        shutil.rmtree(filling, ignore_errors=True)
        if not target.is_dir():
            raise
    return target


def write_private(path: Path, content: str | bytes, account: Account | None) -> None:
    """Writes a file that only `account` can read, whole or not at all.

    The folder may belong to the account, so nothing that lies there is written through.
    """
    filling = path.with_name(path.name + ".new")
    filling.unlink(missing_ok=True)
    with os.fdopen(os.open(filling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(content.encode() if isinstance(content, str) else content)
    filling.replace(path)


def _shared_data_folder(home: Path, name: str) -> Path:
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
    parent = _make_shared(SHARED_ROOT / "data")
    return Path(tempfile.mkdtemp(prefix=f"{digest}-{name}-", dir=parent))


def _make_shared(folder: Path) -> Path:
    for each in (SHARED_ROOT, folder):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)
    return folder


def _open_for_reading(root: Path) -> None:
    root.chmod(0o755)
    for path in root.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
