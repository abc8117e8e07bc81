"""The only place where ingest_svc's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from ingest_svc.announcer import Announcer
from ingest_svc.asset_client import AssetProfiles
from ingest_svc.auth_client import AuthCredentials
from ingest_svc.budget import Budgets
from ingest_svc.config import IngestSettings
from ingest_svc.intake import Intake
from ingest_svc.metrics import IngestMetrics
from ingest_svc.open_streams import OpenStreams
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.servicer import IngestServicer
from ingest_svc.store import BackfillStore
from ingest_svc.stream import TelemetryStream
from meshkit import bus, db
from meshkit.asset_changes import follow_changes
from meshkit.client import fetch_keys_from, service_channel
from meshkit.clock import SystemClock
from meshkit.identity import Principal, ServiceTokens, TokenVerifier
from meshkit.metrics import meter, observe_caches
from meshkit.server import Registration, running_server
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.writer import TelemetryWriter
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc

SERVICE = "ingest_svc"


@asynccontextmanager
async def app(settings: IngestSettings) -> AsyncIterator[int]:
    """Run ingest_svc while the context is open; yields its port.

    At the end the clients of streams are asked to reconnect elsewhere. Then the server stops
    and waits for the requests under way, so that the writer, which ends after it, still
    commits and answers them.
    """
    clock = SystemClock()
    tokens = ServiceTokens(service=SERVICE, mesh_secret=settings.root_secret, clock=clock)
    metrics = IngestMetrics(meter())
    async with (
        service_channel(settings.auth_address, tokens=tokens) as auth_channel,
        service_channel(settings.asset_address, tokens=tokens) as asset_channel,
        db.pool(settings.database_url, application=SERVICE) as pool,
        ProfileCache(source=AssetProfiles(channel=asset_channel), clock=clock) as profiles,
        bus.connection(
            settings.nats_url.get_secret_value(),
            name=SERVICE,
            on_connect=partial(follow_changes, forget=profiles.forget, forget_all=profiles.distrust),
            on_reconnect=profiles.distrust,
        ) as nats_client,
        SeriesCatalog(pool=pool) as catalog,
        Announcer(bus=nats_client) as announcer,
        TelemetryWriter(pool=pool, on_committed=announcer.announce, on_group=metrics.group_stored) as writer,
        OpenStreams(clock=clock, max_lifetime_s=settings.max_stream_lifetime_seconds) as streams,
    ):
        verifier = TokenVerifier(fetch_keys=fetch_keys_from(auth_channel), service_tokens=tokens, clock=clock)
        backfills = BackfillStore(pool=pool)
        intake = Intake(
            profiles=profiles,
            catalog=catalog,
            backfills=backfills,
            live_window=settings.live_window,
        )
        credentials = AuthCredentials(channel=auth_channel, verifier=verifier)
        budgets = Budgets()
        metrics.observe(waiting=writer.waiting, announcer=announcer, streams=streams)
        observe_caches(meter(), profiles=profiles.lookups, series=catalog.lookups, tokens=verifier.lookups)

        def new_stream(principal: Principal) -> TelemetryStream:
            return TelemetryStream(
                principal=principal,
                intake=intake,
                writer=writer,
                credentials=credentials,
                streams=streams,
                budgets=budgets,
                clock=clock,
            )

        servicer = IngestServicer(
            intake=intake,
            writer=writer,
            backfills=backfills,
            clock=clock,
            new_stream=new_stream,
            on_answered=metrics.answered,
        )

        async with running_server(
            listen=settings.listen,
            registrations=[
                Registration(
                    "twinmesh.ingest.v1.IngestService",
                    ingest_grpc.add_IngestServiceServicer_to_server,
                    servicer,
                )
            ],
            verifier=verifier,
            checks={"postgresql": lambda: pool.fetchval("SELECT 1")},
            hints={"nats": bus.connected(nats_client)},
            drain=streams.drain,
        ) as port:
            yield port
