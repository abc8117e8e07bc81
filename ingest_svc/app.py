"""The only place where ingest_svc's parts meet."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import asyncpg
import grpc
from nats.aio.client import Client

from ingest_svc.announcer import Announcer
from ingest_svc.applied import Applied
from ingest_svc.assembler import Assembler
from ingest_svc.asset_cache import AssetCache
from ingest_svc.asset_client import AssetProfiles
from ingest_svc.auth_client import AuthCredentials, AuthKeyScopes
from ingest_svc.budget import Budgets
from ingest_svc.child_cache import ChildCache
from ingest_svc.config import IngestSettings
from ingest_svc.connections import ConnectionLimits
from ingest_svc.contract import CALLERS
from ingest_svc.forbidden_publishes import ForbiddenPublishes
from ingest_svc.frontier_reports import follow_reports
from ingest_svc.ingest_policies import IngestPolicies
from ingest_svc.intake import Intake
from ingest_svc.limit_hits import LimitHits
from ingest_svc.limiter import Limited, Limiter
from ingest_svc.message_intake import MessageIntake
from ingest_svc.message_path import MessagePath
from ingest_svc.metrics import IngestMetrics
from ingest_svc.mqtt import running_mqtt
from ingest_svc.open_streams import OpenStreams
from ingest_svc.placements import Placements
from ingest_svc.processing import Processing
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.raw_trail import RawTrail
from ingest_svc.receipts import Receipts
from ingest_svc.replay import Replays
from ingest_svc.servicer import IngestServicer
from ingest_svc.servicers.connection import ConnectionServicer
from ingest_svc.servicers.dead_letters import DeadLetterServicer
from ingest_svc.servicers.ingest_policy import IngestPolicyServicer
from ingest_svc.servicers.limit import LimitServicer
from ingest_svc.servicers.raw_messages import RawMessageServicer
from ingest_svc.servicers.receipts import ReceiptServicer
from ingest_svc.servicers.restore import RestoreServicer
from ingest_svc.servicers.storage_policy import StoragePolicyServicer
from ingest_svc.storage_room import StorageRoom
from ingest_svc.store import BackfillStore, CommitStore, PlacementStore, RawMessageStore, StateStore
from ingest_svc.stream import TelemetryStream
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.twin_frontiers import TwinFrontiers
from meshkit import bus, db
from meshkit.access import AuthDoor, access
from meshkit.asset_changes import follow_changes
from meshkit.client import service_channel
from meshkit.clock import Clock, SystemClock
from meshkit.connections import Connections
from meshkit.metrics import meter, observe_audit, observe_caches, observe_connections
from meshkit.open_calls import OpenCall
from meshkit.present_settings import PresentSettings
from meshkit.revocation_announcements import listen
from meshkit.server import Registration, running_server
from meshkit.tasks import background
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.chunks import ChunkStore
from telemetry_store.commit import Commit
from telemetry_store.dead_letter_store import DeadLetterStore
from telemetry_store.ingest_policies import INGEST_POLICIES
from telemetry_store.limit_hits import LimitHitStore
from telemetry_store.limits import LimitStore
from telemetry_store.receipts import ReceiptStore
from telemetry_store.restores import RestoreStore
from telemetry_store.storage_policies import STORAGE_POLICIES
from telemetry_store.storage_room import read_room
from telemetry_store.tenant_policies import PolicyStore
from telemetry_store.writer import TelemetryWriter
from twinmesh.ingest.v1 import connection_service_pb2_grpc as connection_grpc
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_grpc
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.ingest.v1 import limit_service_pb2_grpc as limit_grpc
from twinmesh.ingest.v1 import raw_message_service_pb2_grpc as raw_grpc
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as receipt_grpc
from twinmesh.ingest.v1 import restore_service_pb2_grpc as restore_grpc
from twinmesh.ingest.v1 import storage_policy_service_pb2_grpc as storage_policy_grpc

SERVICE = "ingest_svc"


@asynccontextmanager
async def app(settings: IngestSettings) -> AsyncIterator[int]:
    """Run ingest_svc while the context is open; yields its port.

    At the end the clients of streams are asked to reconnect elsewhere. Then the server stops
    and waits for the requests under way, so that the writer, which ends after it, still
    commits and answers them.
    """
    clock = SystemClock()
    metrics = IngestMetrics(meter())

    def forget(tenant: str, *, device_ids: Sequence[str], device_type_ids: Sequence[str]) -> None:
        profiles.forget(tenant, device_ids=device_ids, device_type_ids=device_type_ids)
        children.forget(tenant, device_ids=device_ids)

    def distrust() -> None:
        profiles.distrust()
        children.distrust()

    async def subscribe(client: Client) -> None:
        await follow_changes(client, forget=forget, forget_all=distrust)
        await follow_reports(client, frontiers=frontiers)
        await listen(client, door.revocations)

    def reconnected() -> None:
        distrust()
        frontiers.listen_anew()

    def committed(commit: Commit) -> None:
        announcer.announce(commit)
        assembler.add(commit.whole)

    async with (
        _neighbours(settings, clock) as (door, asset_channel),
        _pools(settings) as (pool, raw_pool),
        background(
            (placements := Placements(store=PlacementStore(pool=pool), clock=clock)).keep_saving(),
            name="save-placements",
        ),
        ProfileCache(
            source=(assets := AssetProfiles(channel=asset_channel)), clock=clock, on_read=placements.note
        ) as profiles,
        TenantCache(source=assets, clock=clock) as tenants,
        ChildCache(source=assets, clock=clock) as children,
        AssetCache(source=assets, clock=clock) as known_assets,
        TwinFrontiers() as frontiers,
        bus.connection(
            settings.nats_url.get_secret_value(),
            name=SERVICE,
            on_connect=subscribe,
            on_reconnect=reconnected,
        ) as nats_client,
        _limits(
            pool,
            settings,
            clock=clock,
            counts=(limit_store := LimitStore(pool=pool, holder=uuid.uuid4())),
            metrics=metrics,
        ) as (policies, limiter, connection_limits, connections),
        SeriesCatalog(pool=pool) as catalog,
        Announcer(bus=nats_client) as announcer,
        Applied(frontiers=frontiers, last_commits=CommitStore(pool=pool).last_commits) as applied,
        StorageRoom(source=partial(read_room, pool)) as room,
        TelemetryWriter(
            pool=pool,
            refusal=room.refusal,
            judge=(processing := Processing(catalog=catalog, store=StateStore(pool=pool))).judge,
            on_committed=committed,
            on_group=metrics.group_stored,
        ) as writer,
        background(processing.keep_saving(), name="save-states"),
        OpenStreams(clock=clock, max_lifetime_s=settings.max_stream_lifetime_seconds) as streams,
    ):
        backfills = BackfillStore(pool=pool)
        chunks = ChunkStore(pool=pool)
        message_intake = MessageIntake(
            profiles=profiles,
            children=children,
            series_finder=processing,
            chunks=chunks,
        )
        assembler = Assembler(
            store=chunks,
            profiles=profiles,
            intake=message_intake,
            limiter=limiter,
            writer=writer,
            live_window=policies.live_window,
            clock=clock,
        )
        intake = Intake(
            profiles=profiles,
            assets=known_assets,
            series_finder=processing,
            backfills=backfills,
            live_window=policies.live_window,
            messages=message_intake,
        )
        raw = RawTrail(keeps=policies.keeps_raw)
        credentials = AuthCredentials(channel=door.auth_channel, verifier=door.verifier)
        budgets = Budgets()
        metrics.observe(waiting=writer.waiting, announcer=announcer, streams=streams, room=room)
        observe_caches(
            meter(),
            profiles=profiles.lookups,
            series=catalog.lookups,
            tenants=tenants.lookups,
            children=children.lookups,
            assets=known_assets.lookups,
            tokens=door.verifier.lookups,
        )
        observe_audit(meter(), door.audit)

        def new_stream(call: OpenCall) -> TelemetryStream:
            return TelemetryStream(
                call=call,
                intake=intake,
                limiter=limiter,
                writer=writer,
                raw=raw,
                applied=applied,
                credentials=credentials,
                streams=streams,
                budgets=budgets,
                clock=clock,
            )

        servicer = IngestServicer(
            intake=intake,
            limiter=limiter,
            writer=writer,
            raw=raw,
            applied=applied,
            backfills=backfills,
            clock=clock,
            new_stream=new_stream,
        )

        messages = MessagePath(
            tenants=tenants,
            profiles=profiles,
            intake=message_intake,
            limiter=limiter,
            writer=writer,
            raw=raw,
            live_window=policies.live_window,
            clock=clock,
        )
        letters = DeadLetterStore(pool=pool)
        async with (
            background(assembler.run(), name="assembler"),
            _storing_messages(messages, settings, writer=writer, clock=clock),
            running_server(
                listen=settings.listen,
                registrations=[
                    Registration(
                        "twinmesh.ingest.v1.IngestService",
                        ingest_grpc.add_IngestServiceServicer_to_server,
                        servicer,
                    ),
                    Registration(
                        "twinmesh.ingest.v1.IngestPolicyService",
                        policy_grpc.add_IngestPolicyServiceServicer_to_server,
                        IngestPolicyServicer(
                            store=PolicyStore(pool=pool, table=INGEST_POLICIES),
                            policies=policies,
                            live_window=settings.live_window,
                            max_connections=settings.max_tenant_connections,
                        ),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.ConnectionService",
                        connection_grpc.add_ConnectionServiceServicer_to_server,
                        ConnectionServicer(limits=connection_limits),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.StoragePolicyService",
                        storage_policy_grpc.add_StoragePolicyServiceServicer_to_server,
                        StoragePolicyServicer(
                            store=PolicyStore(pool=pool, table=STORAGE_POLICIES),
                            effective=settings.effective,
                        ),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.LimitService",
                        limit_grpc.add_LimitServiceServicer_to_server,
                        LimitServicer(hits=LimitHitStore(pool=pool), usage=limit_store, policies=policies),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.DeadLetterService",
                        dead_letter_grpc.add_DeadLetterServiceServicer_to_server,
                        DeadLetterServicer(
                            letters=letters,
                            replays=Replays(
                                letters=letters,
                                key_scopes=AuthKeyScopes(channel=door.auth_channel),
                                intake=intake,
                                messages=messages,
                                writer=writer,
                            ),
                        ),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.ReceiptService",
                        receipt_grpc.add_ReceiptServiceServicer_to_server,
                        ReceiptServicer(receipts=Receipts(store=ReceiptStore(pool=pool))),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.RestoreService",
                        restore_grpc.add_RestoreServiceServicer_to_server,
                        RestoreServicer(restores=RestoreStore(pool=pool)),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.RawMessageService",
                        raw_grpc.add_RawMessageServiceServicer_to_server,
                        RawMessageServicer(messages=RawMessageStore(pool=raw_pool), clock=clock),
                    ),
                ],
                door=door,
                callers=CALLERS,
                checks={"postgresql": lambda: pool.fetchval("SELECT 1")},
                hints={"nats": bus.connected(nats_client)},
                drain=streams.drain,
                connections=connections,
            ) as port,
        ):
            yield port


@asynccontextmanager
async def _neighbours(
    settings: IngestSettings, clock: Clock
) -> AsyncIterator[tuple[AuthDoor, grpc.aio.Channel]]:
    """Know callers by auth_svc, and open the channel to asset_svc, while the context is open."""
    async with (
        access(settings, service=SERVICE, clock=clock) as door,
        service_channel(settings.asset_address, service="asset_svc", identity=door.identity) as channel,
    ):
        yield door, channel


@asynccontextmanager
async def _pools(settings: IngestSettings) -> AsyncIterator[tuple[asyncpg.Pool, asyncpg.Pool]]:
    """Open two pools while the context is open: one for commits, one apart for long answers.

    These hold none of the connections that commits need.
    """
    database_url = PresentSettings(settings, clock=SystemClock()).of(lambda now: now.database_url)
    async with (
        db.pool(database_url, application=SERVICE) as pool,
        db.pool(database_url, application=f"{SERVICE} raw", max_size=2) as raw_pool,
    ):
        yield pool, raw_pool


@asynccontextmanager
async def _limits(
    pool: asyncpg.Pool,
    settings: IngestSettings,
    *,
    counts: LimitStore,
    metrics: IngestMetrics,
    clock: Clock,
) -> AsyncIterator[tuple[IngestPolicies, Limiter, ConnectionLimits, Connections]]:
    """Go by tenants' policies while the context is open."""

    def limited(limit: Limited, times: int = 1) -> None:
        metrics.limited(limit.key.name, times)
        hits.add(limit, times)

    async with (
        IngestPolicies(
            source=PolicyStore(pool=pool, table=INGEST_POLICIES),
            live_window=settings.live_window,
            keeps_raw=settings.raw_messages,
            max_connections=settings.max_tenant_connections,
        ) as policies,
        LimitHits(sink=LimitHitStore(pool=pool), clock=clock) as hits,
        Limiter(limits_of=policies.limits, source=counts, on_limited=limited) as limiter,
        Connections(
            hold=partial(
                (
                    connection_limits := ConnectionLimits(
                        policies=policies, counts=counts, on_limited=limited
                    )
                ).hold,
                uuid.uuid4(),
            )
        ) as connections,
    ):
        observe_connections(meter(), connections)
        yield policies, limiter, connection_limits, connections


@asynccontextmanager
async def _storing_messages(
    messages: MessagePath, settings: IngestSettings, *, writer: TelemetryWriter, clock: Clock
) -> AsyncIterator[None]:
    """Store what devices send by MQTT while the context is open, if they may."""
    if settings.device_nats_url is None:
        yield
        return
    url = settings.device_nats_url.get_secret_value()
    async with running_mqtt(url, name=SERVICE, store=messages, clock=clock) as client:
        if settings.nats_log is None:
            yield
            return
        forbidden = ForbiddenPublishes(client=client, writer=writer, clock=clock)
        async with background(forbidden.follow(settings.nats_log), name="forbidden-publishes"):
            yield
