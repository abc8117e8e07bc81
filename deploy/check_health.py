"""Exits 0 when the service of this container answers SERVING by grpc.health.v1."""

import os
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshkit.service_identity import ServiceIdentity, channel_credentials, channel_options

_SECONDS = 2.0


def main() -> None:
    """Ask the port of TWINMESH_LISTEN on loopback, as the service itself."""
    port = os.environ["TWINMESH_LISTEN"].rpartition(":")[2]
    identity = ServiceIdentity(Path(os.environ["TWINMESH_IDENTITY_DIR"]))
    with grpc.secure_channel(
        f"127.0.0.1:{port}",
        channel_credentials(identity.present()),
        options=channel_options(identity.name.name),
    ) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            sys.exit(str(error))
    sys.exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving")


if __name__ == "__main__":
    main()
