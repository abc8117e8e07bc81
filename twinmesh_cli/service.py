"""A service of the mesh as a part: `python -m MODULE`, ready when its health says so."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.embedded import ChildProcess, Part
from meshkit.embedded.part import until_ready

# The resource attribute that tells traces and metrics which part of the mesh a process is.
PART = "twinmesh.part"
_READY_SECONDS = 60.0
_OWN_PREFIXES = ("TWINMESH_", "OTEL_")


class ServiceProcess(Part):
    """One service process that listens on 127.0.0.1:`port`.

    `variables` are all it is told: the caller's own settings are taken out of its
    environment first. `connect` opens a channel to an address of its.
    """

    def __init__(
        self,
        *,
        name: str,
        module: str,
        port: int,
        variables: Mapping[str, str],
        log_path: Path,
        connect: Callable[[str], grpc.Channel],
    ) -> None:
        super().__init__()
        self.name = name
        self.port = port
        self._module = module
        self._variables = dict(variables)
        self._log_path = log_path
        self._connect = connect

    def is_ready(self) -> bool:
        """Whether grpc.health.v1 answers SERVING for the whole process."""
        with self._connect(f"127.0.0.1:{self.port}") as channel:
            try:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=1.0)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _starting(self) -> Iterator[None]:
        variables = {
            **self._variables,
            "TWINMESH_LISTEN": f"127.0.0.1:{self.port}",
            "OTEL_RESOURCE_ATTRIBUTES": f"{PART}={self.name}",
        }
        self._process = ChildProcess(
            command=module_command(self._module),
            log_path=self._log_path,
            environment=service_environment(variables),
            death_signal=signal.SIGTERM,
            # Streams drain for 10 s, then calls for 5 s, and a writer for 15 s while the database is away.
            stop_signals=((signal.SIGTERM, 35.0),),
        )
        self._process.spawn()
        yield from until_ready(self._process, self.name, self.is_ready, seconds=_READY_SECONDS)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter.

    `-P`: `python -m` looks for modules in the present folder first, which is anybody's.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def service_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without any setting of the mesh, and `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIXES)}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}
