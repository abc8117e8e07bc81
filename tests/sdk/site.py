"""An ingest_svc that can be stopped and started again at one address, and gateways that send to it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc

from ingest_svc.app import app
from ingest_svc.config import IngestSettings
from meshkit.embedded import free_ports
from meshkit.testing import identities
from tests.rpc.ingest.neighbours import TENANT, Ingest
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh_client import GatewayClient

if TYPE_CHECKING:
    from pathlib import Path

    from meshkit.testing.auth import TokenMint
    from meshkit.testing.database import TestDatabase
    from tests.rpc.ingest.neighbours import FakeAssets

NOW_US = time.time_ns() // 1000


@dataclass
class Site:
    """One ingest_svc, up or down, its database, and a folder for spools."""

    database: TestDatabase
    nats_url: str
    auth_address: str
    mint: TokenMint
    assets: FakeAssets
    asset_address: str
    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    inner_port: int = field(default_factory=lambda: free_ports(1)[0])
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def address(self) -> str:
        """Return the address, whether somebody listens or not."""
        return f"127.0.0.1:{self.port}"

    async def start(self, **settings: Any) -> None:
        """Start ingest_svc, and what stands for Envoy before it."""
        await self._running.enter_async_context(
            identities.plain_way_in("ingest_svc", self.inner_port, listen=self.port)
        )
        await self._running.enter_async_context(
            app(
                IngestSettings(
                    listen=f"127.0.0.1:{self.inner_port}",
                    identity_dir=identities.identity_dir("ingest_svc"),
                    service_database_url=self.database.url("twinmesh_ingest"),
                    nats_url=self.nats_url,
                    auth_address=self.auth_address,
                    asset_address=self.asset_address,
                    **settings,
                )
            )
        )

    async def stop(self) -> None:
        """Stop it as a rolling restart does."""
        await self._running.aclose()

    def token(self, **claims: Any) -> str:
        """Return a token that may write telemetry."""
        return self.mint.token(tenant=TENANT, **{"permissions": ("telemetry:write",), **claims})

    def gateway(self, *, spool: str = "spool", **options: Any) -> GatewayClient:
        """Return a client that is not entered yet."""
        fields = {"token": self.token(), "name": "line-4", "max_age": 0.02, "drain_timeout": 20.0, **options}
        return GatewayClient(self.address, spool=self.folder / spool, **fields)

    async def samples(self) -> dict[tuple[str, str, int], Any]:
        """Return what PostgreSQL holds: values by device, metric and time."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = ingest_grpc.IngestServiceStub(channel)
            return await Ingest(stub, channel, self.mint, self.assets, self.database, self.nats_url).samples()

    async def count(self) -> int:
        """Return how many samples PostgreSQL holds, each as often as it was stored."""
        connection = await asyncpg.connect(self.database.admin_url)
        try:
            query = "SELECT coalesce(sum(cardinality(times)), 0)::bigint FROM telemetry.segment"
            return int(await connection.fetchval(query))
        finally:
            await connection.close()
