"""The unprivileged user that embedded servers run as when the caller is root.

PostgreSQL refuses to run as root, and NATS and Envoy have no need to. An account
that exists is preferred, so that a machine is not changed without need: first
`twinmesh` (made by an earlier start or by the administrator), then `postgres`.
Otherwise `twinmesh` is created as a system user; where that is impossible,
`nobody` is used. A bare numeric id would not do: initdb wants a name.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PREFERRED = ("twinmesh", "postgres")
_CREATED = "twinmesh"
_LAST_RESORT = "nobody"


@dataclass(frozen=True)
class Account:
    """A user of the machine."""

    name: str
    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """The account to drop to, or None when the caller is an ordinary user already.

    Raises LookupError when the caller is root and no account can be had.
    """
    if os.geteuid() != 0:
        return None
    for name in _PREFERRED:
        account = _find(name)
        if account is not None:
            return account
    account = _create(_CREATED) or _find(_LAST_RESORT)
    if account is None:
        raise LookupError(
            f"PostgreSQL does not run as root, and no account '{_CREATED}' could be made; "
            f"create one (useradd --system {_CREATED}) or start as an ordinary user"
        )
    return account


def can_reach(account: Account | None, path: Path) -> bool:
    """Whether `account` (None: the caller) can traverse to `path` and read it.

    The question is put to the kernel as that user, so that access lists and mount
    options count as well.
    """
    if account is None:
        return os.access(path, os.R_OK)
    command = ["/usr/bin/test", "-x" if path.is_dir() else "-r", str(path)]
    answer = subprocess.run(
        command, cwd="/", user=account.uid, group=account.gid, extra_groups=[], check=False
    )
    return answer.returncode == 0


def _find(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _create(name: str) -> Account | None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        return None
    command = [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _find(name)
