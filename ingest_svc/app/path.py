"""The way of a sample: taken apart, judged and committed; and what is told of it afterwards."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ingest_svc.announcer import Announcer
from ingest_svc.app.common import Common
from ingest_svc.app.knowledge import Knowledge
from ingest_svc.app.limits import Limits
from ingest_svc.applied import Applied
from ingest_svc.assembler import Assembler
from ingest_svc.auth_client import AuthCredentials, AuthKeyScopes
from ingest_svc.budget import Budgets
from ingest_svc.intake import Intake
from ingest_svc.message_intake import MessageIntake
from ingest_svc.message_path import MessagePath
from ingest_svc.open_streams import OpenStreams
from ingest_svc.processing import Processing
from ingest_svc.raw_trail import RawTrail
from ingest_svc.receipts import Receipts
from ingest_svc.replay import Replays
from ingest_svc.servicer import IngestServicer
from ingest_svc.servicers.dead_letters import DeadLetterServicer
from ingest_svc.servicers.raw_messages import RawMessageServicer
from ingest_svc.servicers.receipts import ReceiptServicer
from ingest_svc.servicers.restore import RestoreServicer
from ingest_svc.storage_room import StorageRoom
from ingest_svc.store import BackfillStore, CommitStore, RawMessageStore, StateStore
from ingest_svc.stream import TelemetryStream
from meshkit.metrics import meter, observe_audit, observe_caches
from meshkit.open_calls import OpenCall
from meshkit.server import Registration
from meshkit.tasks import background
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.chunks import ChunkStore
from telemetry_store.commit import Commit
from telemetry_store.dead_letter_store import DeadLetterStore
from telemetry_store.receipts import ReceiptStore
from telemetry_store.restores import RestoreStore
from telemetry_store.storage_room import read_room
from telemetry_store.writer import TelemetryWriter
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as dead_letter_grpc
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh.ingest.v1 import raw_message_service_pb2_grpc as raw_grpc
from twinmesh.ingest.v1 import receipt_service_pb2_grpc as receipt_grpc
from twinmesh.ingest.v1 import restore_service_pb2_grpc as restore_grpc


@dataclass(frozen=True, slots=True)
class SamplePath:
    """What the doors are given.

    Attributes:
        messages: the way of messages by MQTT, and of those that are replayed.
        writer: commits.
        streams: that are open.
        registrations: of the services that take samples and tell of them.
    """

    messages: MessagePath
    writer: TelemetryWriter
    streams: OpenStreams
    registrations: Sequence[Registration]


@asynccontextmanager
async def running(common: Common, known: Knowledge, limits: Limits) -> AsyncIterator[SamplePath]:
    """Take samples while the context is open; what was taken by then is committed at its end."""
    pool, clock = common.pool, common.clock
    chunks, backfills = ChunkStore(pool=pool), BackfillStore(pool=pool)

    def committed(commit: Commit) -> None:
        announcer.announce(commit)
        assembler.add(commit.whole)

    async with (
        SeriesCatalog(pool=pool) as catalog,
        Announcer(bus=known.nats) as announcer,
        Applied(frontiers=known.frontiers, last_commits=CommitStore(pool=pool).last_commits) as applied,
        StorageRoom(source=partial(read_room, pool)) as room,
        TelemetryWriter(
            pool=pool,
            refusal=room.refusal,
            judge=(processing := Processing(catalog=catalog, store=StateStore(pool=pool))).judge,
            on_committed=committed,
            on_group=common.metrics.group_stored,
        ) as writer,
        background(processing.keep_saving(), name="save-states"),
        OpenStreams(clock=clock, max_lifetime_s=common.settings.max_stream_lifetime_seconds) as streams,
    ):
        message_intake = MessageIntake(
            profiles=known.profiles, children=known.children, series_finder=processing, chunks=chunks
        )
        assembler = Assembler(
            store=chunks,
            profiles=known.profiles,
            intake=message_intake,
            limiter=limits.limiter,
            writer=writer,
            live_window=limits.policies.live_window,
            clock=clock,
        )
        intake = Intake(
            profiles=known.profiles,
            assets=known.assets,
            series_finder=processing,
            backfills=backfills,
            live_window=limits.policies.live_window,
            messages=message_intake,
        )
        raw = RawTrail(keeps=limits.policies.keeps_raw)
        messages = MessagePath(
            tenants=known.tenants,
            profiles=known.profiles,
            intake=message_intake,
            limiter=limits.limiter,
            writer=writer,
            raw=raw,
            live_window=limits.policies.live_window,
            clock=clock,
        )
        common.metrics.observe(waiting=writer.waiting, announcer=announcer, streams=streams, room=room)
        _observe(common, known, catalog)
        credentials = AuthCredentials(channel=common.door.auth_channel, verifier=common.door.verifier)
        budgets = Budgets()

        def new_stream(call: OpenCall) -> TelemetryStream:
            return TelemetryStream(
                call=call,
                intake=intake,
                limiter=limits.limiter,
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
            limiter=limits.limiter,
            writer=writer,
            raw=raw,
            applied=applied,
            backfills=backfills,
            clock=clock,
            new_stream=new_stream,
        )
        async with background(assembler.run(), name="assembler"):
            yield SamplePath(
                messages,
                writer,
                streams,
                [
                    Registration(
                        "twinmesh.ingest.v1.IngestService",
                        ingest_grpc.add_IngestServiceServicer_to_server,
                        servicer,
                    ),
                    _dead_letters(common, intake, messages, writer),
                    *_afterwards(common),
                ],
            )


def _observe(common: Common, known: Knowledge, catalog: SeriesCatalog) -> None:
    observe_caches(
        meter(),
        profiles=known.profiles.lookups,
        series=catalog.lookups,
        tenants=known.tenants.lookups,
        children=known.children.lookups,
        assets=known.assets.lookups,
        tokens=common.door.verifier.lookups,
    )
    observe_audit(meter(), common.door.audit)


def _dead_letters(
    common: Common, intake: Intake, messages: MessagePath, writer: TelemetryWriter
) -> Registration:
    letters = DeadLetterStore(pool=common.pool)
    replays = Replays(
        letters=letters,
        key_scopes=AuthKeyScopes(channel=common.door.auth_channel),
        intake=intake,
        messages=messages,
        writer=writer,
    )
    return Registration(
        "twinmesh.ingest.v1.DeadLetterService",
        dead_letter_grpc.add_DeadLetterServiceServicer_to_server,
        DeadLetterServicer(letters=letters, replays=replays),
    )


def _afterwards(common: Common) -> Sequence[Registration]:
    """Return the services that tell of what was taken."""
    return [
        Registration(
            "twinmesh.ingest.v1.ReceiptService",
            receipt_grpc.add_ReceiptServiceServicer_to_server,
            ReceiptServicer(receipts=Receipts(store=ReceiptStore(pool=common.pool))),
        ),
        Registration(
            "twinmesh.ingest.v1.RestoreService",
            restore_grpc.add_RestoreServiceServicer_to_server,
            RestoreServicer(restores=RestoreStore(pool=common.pool)),
        ),
        Registration(
            "twinmesh.ingest.v1.RawMessageService",
            raw_grpc.add_RawMessageServiceServicer_to_server,
            RawMessageServicer(messages=RawMessageStore(pool=common.raw_pool), clock=common.clock),
        ),
    ]
