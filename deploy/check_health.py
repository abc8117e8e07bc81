"""Exits 0 when the service of this container answers SERVING by grpc.health.v1."""

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 2.0


def main() -> None:
    """Ask the port of TWINMESH_LISTEN on loopback."""
    port = os.environ["TWINMESH_LISTEN"].rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            sys.exit(str(error))
    sys.exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else "not serving")


if __name__ == "__main__":
    main()
