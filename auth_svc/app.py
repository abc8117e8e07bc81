"""The only place where auth_svc's parts meet."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog
from nats.aio.client import Client

from auth_svc.access_tokens import AccessTokens
from auth_svc.api_keys import ApiKeys
from auth_svc.asset_client import AssetDevices
from auth_svc.audit import AuditEvents
from auth_svc.certificate_exchange import CertificateExchange
from auth_svc.config import AuthSettings
from auth_svc.contract import CALLERS
from auth_svc.deleted_devices import DeletedDevices
from auth_svc.device_certificates import DeviceCertificates
from auth_svc.device_logins import DeviceLogins
from auth_svc.exchanged_tokens import ExchangedTokens
from auth_svc.jwks_reader import jwks_reader
from auth_svc.key_exchange import KeyExchange
from auth_svc.key_uses import KeyUses
from auth_svc.login_limits import FORGOTTEN_AFTER_S, LoginLimits
from auth_svc.mqtt_callout import MQTT_HOLDER, MqttCallout
from auth_svc.nats_tokens import LoginAnswers
from auth_svc.new_passwords import NewPasswords
from auth_svc.passwords import PasswordVerifier
from auth_svc.peers import peers
from auth_svc.revocation_list import RevocationList
from auth_svc.revocations import Announcer
from auth_svc.servicers.access_log import AccessLogServicer
from auth_svc.servicers.api_keys import ApiKeyScopeServicer, ApiKeyServicer
from auth_svc.servicers.audit import AuditEventServicer, AuditServicer
from auth_svc.servicers.authorization import AuthorizationServicer
from auth_svc.servicers.device_certificates import DeviceCertificateServicer
from auth_svc.servicers.health import HealthServicer
from auth_svc.servicers.revocations import RevocationServicer
from auth_svc.servicers.roles import RoleServicer
from auth_svc.servicers.sessions import SessionServicer
from auth_svc.servicers.tenant_deletion import TenantDeletionServicer
from auth_svc.servicers.tenants import TenantServicer
from auth_svc.servicers.tokens import TokenServicer
from auth_svc.servicers.users import UserServicer
from auth_svc.sessions import Sessions
from auth_svc.signed_requests import SignedRequests
from auth_svc.signing_keys import RELOAD_EVERY_S, KeyRing
from auth_svc.stores.api_keys import ApiKeyStore
from auth_svc.stores.audit_events import AuditEventStore
from auth_svc.stores.deleted_devices import DeletedDevicesRead
from auth_svc.stores.device_certificates import DeviceCertificateStore
from auth_svc.stores.login_limits import FailureStore
from auth_svc.stores.revocations import RevocationStore
from auth_svc.stores.rights import RightsStore
from auth_svc.stores.sessions import SessionStore
from auth_svc.stores.signed_requests import SignedRequestStore
from auth_svc.stores.signing_keys import SigningKeyStore
from auth_svc.stores.tenant_deletion import TenantDeletionStore
from auth_svc.stores.tenants import TenantStore
from auth_svc.stores.users import UserStore
from auth_svc.tenant_deletion import TenantDeletions
from auth_svc.tenant_roles import TenantRoles
from auth_svc.tenants import Tenants
from auth_svc.token_exchange import RELOAD_EVERY_S as RELOAD_ISSUERS_EVERY_S
from auth_svc.token_exchange import TokenExchange
from auth_svc.users import Users
from envoy_api import access_log_pb2_grpc, external_auth_pb2_grpc
from meshkit import bus, db, nats_server
from meshkit.access import Door, own_identity
from meshkit.addresses import Allowed
from meshkit.audit import AuditTrail
from meshkit.ca.folder import read_authority
from meshkit.client import counting_connections, service_channel
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.exports import ExportSlots
from meshkit.identity import TokenVerifier
from meshkit.metrics import meter, observe_audit, observe_caches, observe_connections
from meshkit.outbound import outbound
from meshkit.present_settings import PresentSettings
from meshkit.revocation_announcements import listen
from meshkit.revocations import RevocationKind, Revocations
from meshkit.server import Registration, running_server
from meshkit.tasks import background
from meshkit.tenant_deletion import TenantSweep
from twinmesh.auth.v1 import (
    api_key_scope_service_pb2_grpc,
    api_key_service_pb2_grpc,
    audit_event_service_pb2_grpc,
    audit_service_pb2_grpc,
    device_certificate_service_pb2_grpc,
    revocation_service_pb2_grpc,
    role_service_pb2_grpc,
    session_service_pb2_grpc,
    tenant_deletion_service_pb2_grpc,
    tenant_service_pb2_grpc,
    token_service_pb2_grpc,
    user_service_pb2_grpc,
)
from twinmesh.mesh.v1 import health_service_pb2_grpc

SERVICE = "auth_svc"
_CRL_EVERY_S = 0.5
_DELETED_EVERY_S = 0.5
_KEEP_AUDIT_DAYS_EVERY_S = 3600.0
_FORGET_EVERY_S = 60.0
_FORGET_SIGNATURES_EVERY_S = 1.0
_SECRETS_EVERY_S = 0.5
_USES_EVERY_S = 5.0
_log = structlog.get_logger()


@asynccontextmanager
async def app(settings: AuthSettings) -> AsyncIterator[int]:
    """Run auth_svc while the context is open; yields its port."""
    clock = SystemClock()
    identity = own_identity(settings, SERVICE)
    present = PresentSettings(settings, clock=clock)
    addresses = {
        SERVICE: settings.auth_address,
        "asset_svc": settings.asset_address,
        "ingest_svc": settings.ingest_address,
        "twin_svc": settings.twin_address,
    }
    async with (
        db.pool(present.of(lambda now: now.database_url), application=SERVICE) as pool,
        PasswordVerifier(workers=settings.login_workers, queue=settings.login_queue) as passwords,
        peers(addresses, identity=identity) as mesh,
        service_channel(settings.asset_address, service="asset_svc", identity=identity) as asset_channel,
        _bus(
            settings,
            revocations := Revocations(
                fetch=(revocation_store := RevocationStore(pool=pool)).all_after, clock=clock
            ),
        ) as bus_client,
        outbound(Allowed.parse(settings.outbound_allowed)) as outside,
        counting_connections(settings.ingest_address, identity=identity, holder=uuid.uuid4()) as connections,
        counting_connections(
            settings.ingest_address, identity=identity, holder=MQTT_HOLDER
        ) as mqtt_connections,
    ):
        announce = Announcer(revocations=revocations, client=bus_client)
        api_key_store = ApiKeyStore(pool=pool)
        key_ring = KeyRing(
            store=SigningKeyStore(pool=pool),
            mesh_secret=settings.root_secret,
            life_days=settings.signing_key_days,
            clock=clock,
        )
        await key_ring.refresh()
        access_tokens = AccessTokens(signers=key_ring, clock=clock)
        failures = FailureStore(pool=pool)
        limits = LoginLimits(store=failures, clock=clock, require_place=passwords.require_place)
        accounts, rights = UserStore(pool=pool), RightsStore(pool=pool)
        sessions = Sessions(
            users=accounts,
            sessions=SessionStore(pool=pool),
            verify_password=passwords.verify,
            limits=limits,
            access_tokens=access_tokens,
            announce=announce,
            mesh_secret=settings.root_secret,
            clock=clock,
        )
        new_passwords = NewPasswords(hash_password=passwords.hash, clock=clock)
        users = Users(
            store=rights,
            accounts=accounts,
            verify_password=passwords.verify,
            limits=limits,
            new_passwords=new_passwords,
            announce=announce,
            clock=clock,
        )
        key_tokens = ExchangedTokens(RevocationKind.API_KEY, access_tokens=access_tokens, clock=clock)
        key_uses = KeyUses(store=api_key_store, clock=clock)
        key_exchange = KeyExchange(
            keys=api_key_store, tokens=key_tokens, uses=key_uses, limits=limits, clock=clock
        )
        signatures = SignedRequestStore(pool=pool, clock=clock)
        signed_requests = SignedRequests(
            root=settings.root_secret,
            keys=api_key_store,
            signatures=signatures,
            tokens=key_tokens,
            uses=key_uses,
            clock=clock,
        )
        tenant_store = TenantStore(pool=pool)
        deletions = TenantDeletions(store=(deletion_store := TenantDeletionStore(pool=pool)), clock=clock)
        sweep = TenantSweep(
            closed=partial(deletions.all, SERVICE),
            delete=deletion_store.delete_rows,
            report=partial(deletions.report, SERVICE),
        )
        token_exchange = TokenExchange(
            path=settings.issuers,
            read_jwks=jwks_reader(outside),
            find_tenant=tenant_store.get,
            access_tokens=access_tokens,
            limits=limits,
            clock=clock,
        )
        certificate_store = DeviceCertificateStore(pool=pool)
        certificate_tokens = ExchangedTokens(
            RevocationKind.CERTIFICATE, access_tokens=access_tokens, clock=clock
        )
        certificate_exchange = CertificateExchange(
            certificates=certificate_store, tokens=certificate_tokens, clock=clock
        )
        authority = None if settings.ca_dir is None else read_authority(settings.ca_dir)
        revocation_list = RevocationList(
            authority=authority, certificates=certificate_store, path=settings.crl_file, clock=clock
        )
        await revocation_list.refresh()
        audit_events = AuditEvents(
            store=AuditEventStore(pool=pool), kept_days=settings.audit_kept_days, clock=clock
        )
        await audit_events.keep_days()
        # Its own calls go the way of other services', but for the call.
        audit = AuditTrail(send=partial(audit_events.record, recorder=SERVICE), clock=clock)
        refused = AuditTrail(send=partial(audit_events.record, recorder="gateway"), clock=clock)
        root, devices = settings.root_secret, AssetDevices(channel=asset_channel)
        callout = MqttCallout(
            logins=DeviceLogins(
                keys=api_key_store,
                certificates=certificate_store,
                devices=devices,
                uses=key_uses,
                limits=limits,
                clock=clock,
            ),
            answers=LoginAnswers(issuer=nats_server.issuer(root), key=nats_server.issuer_key(root)),
            trail=audit,
            connections=mqtt_connections,
            clock=clock,
        )
        for follower in (key_tokens, certificate_tokens, callout, revocation_list):
            revocations.follow(follower.revoked)
        certificates = DeviceCertificates(
            authority=authority,
            store=certificate_store,
            devices=devices,
            announce=announce,
            clock=clock,
            valid_days=settings.device_certificate_days,
        )
        deleted = DeletedDevices(
            listed=devices, place=DeletedDevicesRead(pool=pool), certificates=certificates
        )
        api_keys = ApiKeys(store=api_key_store, announce=announce, clock=clock)
        verifier = TokenVerifier(fetch_keys=key_ring.jwks, revocations=revocations, clock=clock)
        access_log = AccessLogServicer(trail=refused)
        observe_audit(meter(), audit, refused)
        observe_connections(meter(), connections, mqtt_connections)
        observe_caches(
            meter(),
            api_keys=key_tokens.lookups,
            device_certificates=certificate_tokens.lookups,
            tokens=verifier.lookups,
        )
        registrations = [
            Registration(
                "twinmesh.auth.v1.SessionService",
                session_service_pb2_grpc.add_SessionServiceServicer_to_server,
                SessionServicer(sessions=sessions, jwks=key_ring.jwks),
            ),
            Registration(
                "twinmesh.auth.v1.TokenService",
                token_service_pb2_grpc.add_TokenServiceServicer_to_server,
                TokenServicer(token_exchange=token_exchange),
            ),
            Registration(
                "twinmesh.auth.v1.ApiKeyService",
                api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server,
                ApiKeyServicer(api_keys=api_keys, root=root),
            ),
            Registration(
                "twinmesh.auth.v1.ApiKeyScopeService",
                api_key_scope_service_pb2_grpc.add_ApiKeyScopeServiceServicer_to_server,
                ApiKeyScopeServicer(api_keys=api_keys),
            ),
            Registration(
                "twinmesh.auth.v1.RevocationService",
                revocation_service_pb2_grpc.add_RevocationServiceServicer_to_server,
                RevocationServicer(revocations=revocation_store),
            ),
            Registration(
                "twinmesh.auth.v1.UserService",
                user_service_pb2_grpc.add_UserServiceServicer_to_server,
                UserServicer(users=users),
            ),
            Registration(
                "twinmesh.auth.v1.RoleService",
                role_service_pb2_grpc.add_RoleServiceServicer_to_server,
                RoleServicer(roles=TenantRoles(store=rights, announce=announce, clock=clock)),
            ),
            Registration(
                "twinmesh.auth.v1.TenantService",
                tenant_service_pb2_grpc.add_TenantServiceServicer_to_server,
                TenantServicer(
                    tenants=Tenants(
                        store=tenant_store,
                        new_passwords=new_passwords,
                        announce=announce,
                        clock=clock,
                    )
                ),
            ),
            Registration(
                "twinmesh.auth.v1.TenantDeletionService",
                tenant_deletion_service_pb2_grpc.add_TenantDeletionServiceServicer_to_server,
                TenantDeletionServicer(deletions=deletions),
            ),
            Registration(
                "twinmesh.auth.v1.DeviceCertificateService",
                device_certificate_service_pb2_grpc.add_DeviceCertificateServiceServicer_to_server,
                DeviceCertificateServicer(certificates=certificates, revocation_list=revocation_list),
            ),
            Registration(
                "twinmesh.auth.v1.AuditService",
                audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditServicer(audit_events=audit_events),
            ),
            Registration(
                "twinmesh.auth.v1.AuditEventService",
                audit_event_service_pb2_grpc.add_AuditEventServiceServicer_to_server,
                AuditEventServicer(audit_events=audit_events, slots=ExportSlots()),
            ),
            Registration(
                "twinmesh.mesh.v1.HealthService",
                health_service_pb2_grpc.add_HealthServiceServicer_to_server,
                HealthServicer(peers=mesh),
            ),
            Registration(
                "envoy.service.accesslog.v3.AccessLogService",
                access_log_pb2_grpc.add_AccessLogServiceServicer_to_server,
                access_log,
            ),
            Registration(
                "envoy.service.auth.v3.Authorization",
                external_auth_pb2_grpc.add_AuthorizationServicer_to_server,
                AuthorizationServicer(
                    key_exchange=key_exchange,
                    signed_requests=signed_requests,
                    certificate_exchange=certificate_exchange,
                ),
            ),
        ]

        async def forget_failures() -> None:
            await failures.forget(clock.now_us() - FORGOTTEN_AFTER_S * MICROS_PER_SECOND)

        async with (
            _repeating("failed log-ins", forget_failures, every_s=_FORGET_EVERY_S),
            _repeating("signatures", signatures.forget, every_s=_FORGET_SIGNATURES_EVERY_S),
            _repeating("signing keys", key_ring.refresh, every_s=RELOAD_EVERY_S),
            _repeating("issuers", token_exchange.refresh, every_s=RELOAD_ISSUERS_EVERY_S),
            revocations.polling(),
            sweep.sweeping(),
            _repeating("uses of API keys", key_uses.write, every_s=_USES_EVERY_S),
            _repeating("secrets of API keys", api_keys.end_secrets, every_s=_SECRETS_EVERY_S),
            _repeating("certificates of deleted devices", deleted.refresh, every_s=_DELETED_EVERY_S),
            _repeating("revocation list", revocation_list.refresh, every_s=_CRL_EVERY_S),
            _repeating("days of the audit", audit_events.keep_days, every_s=_KEEP_AUDIT_DAYS_EVERY_S),
            _logging_devices_in(callout, settings) as hints,
            audit,
            refused,
            running_server(
                listen=settings.listen,
                registrations=registrations,
                door=Door(identity, verifier, audit),
                callers=CALLERS,
                checks={"postgresql": lambda: pool.fetchval("SELECT 1")},
                hints=hints,
                drain=access_log.drain,
                connections=connections,
            ) as port,
        ):
            yield port


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


@asynccontextmanager
async def _logging_devices_in(
    callout: MqttCallout, settings: AuthSettings
) -> AsyncIterator[Mapping[str, Callable[[], Awaitable[object]]]]:
    """Answer NATS while the context is open, if there is one to answer; yields its health check."""
    if settings.callout_nats_url is None:
        yield {}
        return
    async with callout.running(settings.callout_nats_url.get_secret_value(), name=SERVICE) as client:
        yield {"nats": bus.connected(client)}


@asynccontextmanager
async def _repeating(
    what: str, action: Callable[[], Awaitable[object]], *, every_s: float
) -> AsyncIterator[None]:
    """Repeat an action while the context is open; a failure is logged and the next try follows."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await action()
            except Exception as error:
                _log.warning("not refreshed; trying again", what=what, error=repr(error))

    async with background(repeat(), name=what):
        yield
