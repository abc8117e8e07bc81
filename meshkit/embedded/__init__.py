"""PostgreSQL, NATS and Envoy from wheels, run as supervised processes of the caller.

Used by the launcher (`twinmesh up`) and by the test fixtures. Nothing here is
global: any number of each may run at once, each in a home folder of its own.
Each is a `Part`: usable as `with`, as `async with`, or by `start()`/`stop()`.
"""

from meshkit.embedded.account import Account, can_reach, unprivileged_account
from meshkit.embedded.envoy import EmbeddedEnvoy
from meshkit.embedded.logs import bound_log
from meshkit.embedded.nats import EmbeddedNats
from meshkit.embedded.part import Part, PartFailedError
from meshkit.embedded.ports import free_port, free_ports, is_port_free
from meshkit.embedded.postgres import EmbeddedPostgres
from meshkit.embedded.process import ChildProcess

__all__ = [
    "Account",
    "ChildProcess",
    "EmbeddedEnvoy",
    "EmbeddedNats",
    "EmbeddedPostgres",
    "Part",
    "PartFailedError",
    "bound_log",
    "can_reach",
    "free_port",
    "free_ports",
    "is_port_free",
    "unprivileged_account",
]
