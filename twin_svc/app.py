"""The only place where twin_svc's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from meshkit import bus, db
from meshkit.asset_changes import follow_changes
from meshkit.client import fetch_keys_from, service_channel
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.identity import ServiceTokens, TokenVerifier
from meshkit.server import Registration, running_server
from telemetry_store.feed import snapshot
from twin_svc.asset_client import AssetDevices
from twin_svc.config import TwinSettings
from twin_svc.follower import FeedFollower
from twin_svc.registry import DeviceRegistry
from twin_svc.servicer import TwinServicer
from twin_svc.twins import Fleet
from twinmesh.twin.v1 import twin_service_pb2_grpc

SERVICE = "twin_svc"


@asynccontextmanager
async def app(settings: TwinSettings) -> AsyncIterator[int]:
    """Run twin_svc while the context is open; yields its port."""
    clock = SystemClock()
    tokens = ServiceTokens(service=SERVICE, mesh_secret=settings.root_secret, clock=clock)
    async with (
        db.pool(settings.database_url, application=SERVICE) as query_pool,
        # One connection follows the feed, the other proves that the database answers, also
        # while long answers hold all of the first pool.
        db.pool(settings.feed_url, application=f"{SERVICE} feed", max_size=2) as feed_pool,
        service_channel(settings.auth_address, tokens=tokens) as auth_channel,
        service_channel(settings.asset_address, tokens=tokens) as asset_channel,
    ):
        registry = DeviceRegistry(source=AssetDevices(channel=asset_channel), clock=clock)
        fleet = Fleet()
        follower = FeedFollower(
            snapshot=partial(snapshot, feed_pool), fleet=fleet, poll_s=settings.feed_poll_ms / 1000
        )
        servicer = TwinServicer(
            fleet=fleet,
            registry=registry,
            tenant_snapshot=partial(db.tenant_transaction, query_pool, isolation="repeatable_read"),
            clock=clock,
            future_us=settings.future_window_minutes * 60 * MICROS_PER_SECOND,
        )
        async with (
            bus.connection(
                settings.nats_url.get_secret_value(),
                name=SERVICE,
                on_connect=partial(follow_changes, forget=registry.forget, forget_all=registry.forget_all),
                on_reconnect=registry.forget_all,
            ) as client,
            follower.following(),
            running_server(
                listen=settings.listen,
                registrations=[
                    Registration(
                        "twinmesh.twin.v1.TwinService",
                        twin_service_pb2_grpc.add_TwinServiceServicer_to_server,
                        servicer,
                    )
                ],
                verifier=TokenVerifier(
                    fetch_keys=fetch_keys_from(auth_channel), service_tokens=tokens, clock=clock
                ),
                checks={
                    "postgresql": lambda: feed_pool.fetchval("SELECT 1"),
                    "feed": follower.check,
                },
                hints={"nats": bus.connected(client)},
            ) as port,
        ):
            yield port
