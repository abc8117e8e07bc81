"""Twinmesh's gateway client: telemetry in, durable at the server, exactly once.

async with GatewayClient("127.0.0.1:8080", token=key, name="line-4", spool="/var/lib/line-4") as gateway:
    temperature = gateway.series("temp-1", "temperature", unit="°C")
    await temperature.add(21.5)
    await gateway.flush()
"""

from twinmesh_client.client import GatewayClient
from twinmesh_client.errors import (
    Fenced,
    GatewayClosed,
    GatewayError,
    PermissionDenied,
    SequenceGap,
    SequenceReused,
    ServerAhead,
    ServerBehind,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
    SpoolInUse,
    StreamRefused,
    TokenFunctionInvalid,
    Unauthenticated,
)
from twinmesh_client.refusals import Refusal, RefusedBatch
from twinmesh_client.series import Series
from twinmesh_client.signing import RequestSigner, SigningInterceptor
from twinmesh_client.stats import Stats
from twinmesh_client.values import Kind

__all__ = [
    "Fenced",
    "GatewayClient",
    "GatewayClosed",
    "GatewayError",
    "Kind",
    "PermissionDenied",
    "Refusal",
    "RefusedBatch",
    "RequestSigner",
    "SequenceGap",
    "SequenceReused",
    "Series",
    "ServerAhead",
    "ServerBehind",
    "SigningInterceptor",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFull",
    "SpoolInUse",
    "Stats",
    "StreamRefused",
    "TokenFunctionInvalid",
    "Unauthenticated",
]
