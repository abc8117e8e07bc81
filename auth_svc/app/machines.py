"""Programs and devices: API keys, signed requests, device certificates, and MQTT."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from auth_svc.api_keys import ApiKeys
from auth_svc.app.common import SERVICE, Common, repeating
from auth_svc.asset_client import AssetDevices
from auth_svc.certificate_exchange import CertificateExchange
from auth_svc.deleted_devices import DeletedDevices, DeviceDeletions
from auth_svc.device_certificates import DeviceCertificates
from auth_svc.device_logins import DeviceLogins
from auth_svc.exchanged_tokens import ExchangedTokens
from auth_svc.key_exchange import KeyExchange
from auth_svc.key_uses import KeyUses
from auth_svc.mqtt_callout import MqttCallout
from auth_svc.nats_tokens import LoginAnswers
from auth_svc.revocation_list import RevocationList
from auth_svc.servicers.api_keys import ApiKeyScopeServicer, ApiKeyServicer
from auth_svc.servicers.authorization import AuthorizationServicer
from auth_svc.servicers.device_certificates import DeviceCertificateServicer
from auth_svc.signed_requests import SignedRequests
from auth_svc.stores.api_keys import ApiKeyStore
from auth_svc.stores.deleted_devices import DeletedDevicesRead
from auth_svc.stores.device_certificates import DeviceCertificateStore
from auth_svc.stores.signed_requests import SignedRequestStore
from envoy_api import external_auth_pb2_grpc
from meshkit import bus, nats_server
from meshkit.audit import AuditTrail
from meshkit.ca.folder import read_authority
from meshkit.connections import Connections
from meshkit.lookups import Lookups
from meshkit.revocations import RevocationKind
from meshkit.server import Registration
from twinmesh.auth.v1 import (
    api_key_scope_service_pb2_grpc,
    api_key_service_pb2_grpc,
    device_certificate_service_pb2_grpc,
)

_CRL_EVERY_S = 0.5
_DELETED_EVERY_S = 0.5
_FORGET_SIGNATURES_EVERY_S = 1.0
_SECRETS_EVERY_S = 0.5
_USES_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Machines:
    """Programs and devices.

    Attributes:
        registrations: what is served of them.
        hints: checks of what they can do without for a while.
        key_lookups: of API keys that were exchanged before.
        certificate_lookups: of device certificates, likewise.
    """

    registrations: Sequence[Registration]
    hints: Mapping[str, Callable[[], Awaitable[object]]]
    key_lookups: Lookups
    certificate_lookups: Lookups


@asynccontextmanager
async def running(
    common: Common, *, devices: AssetDevices, trail: AuditTrail, connections: Connections
) -> AsyncIterator[Machines]:
    """Know them while the context is open.

    Args:
        common: of the process.
        devices: which there are.
        trail: takes log-ins by MQTT.
        connections: has a place for each device at MQTT.
    """
    keys, certificates = ApiKeyStore(pool=common.pool), DeviceCertificateStore(pool=common.pool)
    uses = KeyUses(store=keys, clock=common.clock)
    place = DeletedDevicesRead(pool=common.pool)
    key_tokens = _exchanged(RevocationKind.API_KEY, common)
    certificate_tokens = _exchanged(RevocationKind.CERTIFICATE, common)
    signatures = SignedRequestStore(pool=common.pool, clock=common.clock)
    api_keys = ApiKeys(store=keys, announce=common.announce, clock=common.clock)
    authorization = AuthorizationServicer(
        key_exchange=KeyExchange(
            keys=keys, tokens=key_tokens, uses=uses, limits=common.limits, clock=common.clock
        ),
        signed_requests=SignedRequests(
            root=common.settings.root_secret,
            keys=keys,
            signatures=signatures,
            tokens=key_tokens,
            uses=uses,
            clock=common.clock,
        ),
        certificate_exchange=CertificateExchange(
            certificates=certificates, tokens=certificate_tokens, clock=common.clock
        ),
    )
    logins = DeviceLogins(
        keys=keys,
        certificates=certificates,
        devices=devices,
        deletions=DeviceDeletions(listed=devices, place=place),
        uses=uses,
        limits=common.limits,
        clock=common.clock,
    )
    for tokens in (key_tokens, certificate_tokens):
        common.revocations.follow(tokens.revoked)
    async with (
        repeating("signatures", signatures.forget, every_s=_FORGET_SIGNATURES_EVERY_S),
        repeating("uses of API keys", uses.write, every_s=_USES_EVERY_S),
        repeating("secrets of API keys", api_keys.end_secrets, every_s=_SECRETS_EVERY_S),
        _certificates(common, certificates, devices, place) as issued,
        _mqtt(common, logins, trail=trail, connections=connections) as hints,
    ):
        yield Machines(
            [
                Registration(
                    "twinmesh.auth.v1.ApiKeyService",
                    api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server,
                    ApiKeyServicer(api_keys=api_keys, root=common.settings.root_secret),
                ),
                Registration(
                    "twinmesh.auth.v1.ApiKeyScopeService",
                    api_key_scope_service_pb2_grpc.add_ApiKeyScopeServiceServicer_to_server,
                    ApiKeyScopeServicer(api_keys=api_keys),
                ),
                issued,
                Registration(
                    "envoy.service.auth.v3.Authorization",
                    external_auth_pb2_grpc.add_AuthorizationServicer_to_server,
                    authorization,
                ),
            ],
            hints,
            key_tokens.lookups,
            certificate_tokens.lookups,
        )


def _exchanged(kind: RevocationKind, common: Common) -> ExchangedTokens:
    return ExchangedTokens(kind, access_tokens=common.access_tokens, clock=common.clock)


@asynccontextmanager
async def _certificates(
    common: Common, store: DeviceCertificateStore, devices: AssetDevices, place: DeletedDevicesRead
) -> AsyncIterator[Registration]:
    """Issue certificates of devices while the context is open, and keep the CRL current."""
    settings = common.settings
    authority = None if settings.ca_dir is None else read_authority(settings.ca_dir)
    revocation_list = RevocationList(
        authority=authority, certificates=store, path=settings.crl_file, clock=common.clock
    )
    await revocation_list.refresh()
    common.revocations.follow(revocation_list.revoked)
    certificates = DeviceCertificates(
        authority=authority,
        store=store,
        devices=devices,
        announce=common.announce,
        clock=common.clock,
        valid_days=settings.device_certificate_days,
    )
    deleted = DeletedDevices(listed=devices, place=place, certificates=certificates)
    async with (
        repeating("certificates of deleted devices", deleted.refresh, every_s=_DELETED_EVERY_S),
        repeating("revocation list", revocation_list.refresh, every_s=_CRL_EVERY_S),
    ):
        yield Registration(
            "twinmesh.auth.v1.DeviceCertificateService",
            device_certificate_service_pb2_grpc.add_DeviceCertificateServiceServicer_to_server,
            DeviceCertificateServicer(certificates=certificates, revocation_list=revocation_list),
        )


@asynccontextmanager
async def _mqtt(
    common: Common, logins: DeviceLogins, *, trail: AuditTrail, connections: Connections
) -> AsyncIterator[Mapping[str, Callable[[], Awaitable[object]]]]:
    """Answer NATS while the context is open, if there is one to answer; yields its health check."""
    if common.settings.callout_nats_url is None:
        yield {}
        return
    root = common.settings.root_secret
    callout = MqttCallout(
        logins=logins,
        answers=LoginAnswers(issuer=nats_server.issuer(root), key=nats_server.issuer_key(root)),
        trail=trail,
        connections=connections,
        clock=common.clock,
    )
    common.revocations.follow(callout.revoked)
    url = common.settings.callout_nats_url.get_secret_value()
    async with callout.running(url, name=SERVICE) as client:
        yield {"nats": bus.connected(client)}
