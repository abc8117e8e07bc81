"""The only place where ingest_svc's parts meet: here its doors, beside it each of the parts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest_svc.app import knowledge, limits, path
from ingest_svc.app.common import SERVICE, Common, opened
from ingest_svc.app.path import SamplePath
from ingest_svc.config import IngestSettings
from ingest_svc.contract import CALLERS
from ingest_svc.forbidden_publishes import ForbiddenPublishes
from ingest_svc.mqtt import running_mqtt
from meshkit import bus
from meshkit.server import running_server
from meshkit.tasks import background


@asynccontextmanager
async def app(settings: IngestSettings) -> AsyncIterator[int]:
    """Run ingest_svc while the context is open; yields its port.

    At the end the clients of streams are asked to reconnect elsewhere. Then the server stops
    and waits for the requests under way, so that the writer, which ends after it, still
    commits and answers them.
    """
    async with (
        opened(settings) as common,
        knowledge.running(common) as known,
        limits.running(common) as limited,
        path.running(common, known, limited) as way,
        _storing_messages(common, way),
        running_server(
            listen=settings.listen,
            registrations=[*way.registrations, *limited.registrations],
            door=common.door,
            callers=CALLERS,
            checks={"postgresql": common.database_check},
            hints={"nats": bus.connected(known.nats)},
            drain=way.streams.drain,
            connections=limited.connections,
        ) as port,
    ):
        yield port


@asynccontextmanager
async def _storing_messages(common: Common, way: SamplePath) -> AsyncIterator[None]:
    """Store what devices send by MQTT while the context is open, if they may."""
    settings, clock = common.settings, common.clock
    if settings.device_nats_url is None:
        yield
        return
    url = settings.device_nats_url.get_secret_value()
    async with running_mqtt(url, name=SERVICE, store=way.messages, clock=clock) as client:
        if settings.nats_log is None:
            yield
            return
        forbidden = ForbiddenPublishes(client=client, writer=way.writer, clock=clock)
        async with background(forbidden.follow(settings.nats_log), name="forbidden-publishes"):
            yield
