"""Free TCP ports on loopback."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_FIRST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that nothing listens on.

    They lie below the range from which the kernel takes ports of outgoing
    connections, so none is lost between this answer and the server's bind. Two
    callers could still be told the same port; the choice is random to make that
    rare, and embedded parts pick again when it happens.
    """
    last = _ephemeral_start() - 1
    chosen: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(_FIRST, last), k=min(last - _FIRST, 50 * count + 200)):
            if len(chosen) == count:
                break
            probe = held.enter_context(socket.socket())
            try:
                probe.bind((host, port))
            except OSError:
                continue
            chosen.append(port)
    if len(chosen) < count:
        raise OSError(f"fewer than {count} free ports between {_FIRST} and {last} on {host}")
    return chosen


def free_port(*, host: str = "127.0.0.1") -> int:
    """One port as `free_ports` gives them."""
    return free_ports(1, host=host)[0]


def is_port_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `host`:`port` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: connections of an earlier server in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _ephemeral_start() -> int:
    try:
        start = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        start = 32_768
    # Some machines open the ephemeral range down to 1024; then there is nothing to stay below.
    return start if start > _FIRST + 1_000 else 60_000
