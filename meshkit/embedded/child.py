"""Becomes the command given, after tying its life to the parent's and lifting its limit of open files.

Run as a script by `process.ChildProcess`, never imported: it must not need
anything but the standard library, and it must work after dropping privileges.

    python -I -S child.py PARENT_PID DEATH_SIGNAL UID GID COMMAND [ARGUMENT ...]

UID and GID are -1 to keep the caller's. The order matters: a change of user
clears the parent-death signal.
"""

import ctypes
import os
import resource
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Drops privileges, arranges to die with the parent, and becomes the command."""
    parent, death_signal, uid, gid = (int(each) for each in arguments[:4])
    command = arguments[4:]
    os.umask(0o077)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # A server of thousands of connections needs more files open than a shell's usual 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
    try:
        os.execv(command[0], command)  # noqa: S606 - to run what the parent asked for is the purpose.  # nosec B606
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
