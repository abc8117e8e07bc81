"""The only place where auth_svc's parts meet: here what they have in common, beside it each of them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from nats.aio.client import Client

from auth_svc.access_tokens import AccessTokens
from auth_svc.app import account, machines, people
from auth_svc.app.common import SERVICE, Common, repeating
from auth_svc.asset_client import AssetDevices
from auth_svc.config import AuthSettings
from auth_svc.contract import CALLERS
from auth_svc.login_limits import FORGOTTEN_AFTER_S, LoginLimits
from auth_svc.mqtt_callout import MQTT_HOLDER
from auth_svc.passwords import PasswordVerifier
from auth_svc.peers import peers
from auth_svc.revocations import Announcer
from auth_svc.servicers.health import HealthServicer
from auth_svc.servicers.revocations import RevocationServicer
from auth_svc.signing_keys import RELOAD_EVERY_S, KeyRing
from auth_svc.stores.login_limits import FailureStore
from auth_svc.stores.revocations import RevocationStore
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import bus, db
from meshkit.access import Door, own_identity
from meshkit.client import counting_connections, service_channel
from meshkit.clock import MICROS_PER_SECOND, Clock, SystemClock
from meshkit.identity import TokenVerifier
from meshkit.metrics import meter, observe_caches, observe_connections
from meshkit.present_settings import PresentSettings
from meshkit.revocation_announcements import listen
from meshkit.revocations import Revocations
from meshkit.server import Registration, running_server
from twinmesh.auth.v1 import revocation_service_pb2_grpc
from twinmesh.mesh.v1 import health_service_pb2_grpc

_FORGET_EVERY_S = 60.0


@asynccontextmanager
async def app(settings: AuthSettings) -> AsyncIterator[int]:
    """Run auth_svc while the context is open; yields its port."""
    clock = SystemClock()
    identity = own_identity(settings, SERVICE)
    addresses = {
        SERVICE: settings.auth_address,
        "asset_svc": settings.asset_address,
        "ingest_svc": settings.ingest_address,
        "twin_svc": settings.twin_address,
    }
    counting = partial(counting_connections, settings.ingest_address, identity=identity)
    async with (
        _common(settings, clock) as common,
        peers(addresses, identity=identity) as mesh,
        service_channel(settings.asset_address, service="asset_svc", identity=identity) as asset_channel,
        counting(holder=uuid.uuid4()) as connections,
        counting(holder=MQTT_HOLDER) as mqtt_connections,
        account.running(common) as kept,
        people.running(common) as of_people,
        machines.running(
            common,
            devices=AssetDevices(channel=asset_channel),
            trail=kept.trail,
            connections=mqtt_connections,
        ) as known,
        common.revocations.polling(),
    ):
        verifier = TokenVerifier(fetch_keys=common.key_ring.jwks, revocations=common.revocations, clock=clock)
        observe_connections(meter(), connections, mqtt_connections)
        observe_caches(
            meter(),
            tokens=verifier.lookups,
            api_keys=known.key_lookups,
            device_certificates=known.certificate_lookups,
        )
        async with running_server(
            listen=settings.listen,
            registrations=[
                *of_people,
                *known.registrations,
                *kept.registrations,
                Registration(
                    "twinmesh.auth.v1.RevocationService",
                    revocation_service_pb2_grpc.add_RevocationServiceServicer_to_server,
                    RevocationServicer(revocations=RevocationStore(pool=common.pool)),
                ),
                Registration(
                    "twinmesh.mesh.v1.HealthService",
                    health_service_pb2_grpc.add_HealthServiceServicer_to_server,
                    HealthServicer(peers=mesh),
                ),
            ],
            door=Door(identity, verifier, kept.trail),
            callers=CALLERS,
            checks={"postgresql": common.database_check},
            hints=known.hints,
            drain=kept.access_log.drain,
            connections=connections,
        ) as port:
            yield port


@asynccontextmanager
async def _common(settings: AuthSettings, clock: Clock) -> AsyncIterator[Common]:
    """Open what all parts are given while the context is open."""
    database_url = PresentSettings(settings, clock=clock).of(lambda now: now.database_url)
    async with (
        db.pool(database_url, application=SERVICE) as pool,
        db.database_check(database_url, application=SERVICE) as database_check,
        PasswordVerifier(workers=settings.password_workers, queue=settings.login_queue) as passwords,
        _bus(
            settings, revocations := Revocations(fetch=RevocationStore(pool=pool).all_after, clock=clock)
        ) as bus_client,
    ):
        key_ring = KeyRing(
            store=SigningKeyStore(pool=pool),
            mesh_secret=settings.root_secret,
            life_days=settings.signing_key_days,
            clock=clock,
        )
        await key_ring.refresh()
        failures = FailureStore(pool=pool)

        async def forget_failures() -> None:
            await failures.forget(clock.now_us() - FORGOTTEN_AFTER_S * MICROS_PER_SECOND)

        async with (
            repeating("signing keys", key_ring.refresh, every_s=RELOAD_EVERY_S),
            repeating("failed log-ins", forget_failures, every_s=_FORGET_EVERY_S),
        ):
            yield Common(
                settings=settings,
                clock=clock,
                pool=pool,
                database_check=database_check,
                passwords=passwords,
                limits=LoginLimits(store=failures, clock=clock, require_place=passwords.require_place),
                key_ring=key_ring,
                access_tokens=AccessTokens(signers=key_ring, clock=clock),
                revocations=revocations,
                announce=Announcer(revocations=revocations, client=bus_client),
            )


@asynccontextmanager
async def _bus(settings: AuthSettings, revocations: Revocations) -> AsyncIterator[Client | None]:
    """Connect to NATS while the context is open, if there is one, and hear of others' revocations."""
    if settings.nats_url is None:
        yield None
        return
    url = settings.nats_url.get_secret_value()
    async with bus.connection(
        url, name=SERVICE, on_connect=partial(listen, revocations=revocations)
    ) as client:
        yield client
