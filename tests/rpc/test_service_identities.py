"""Who may call a service, by certificate; and what happens when certificates are replaced."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asset_svc.contract import CALLERS
from meshkit import server
from meshkit.access import Door
from meshkit.audit import AuditTrail
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, publish, read_authority
from meshkit.ca.identities import LIFE, Identities, Place, write_identity
from meshkit.channels import mutual_channel
from meshkit.clock import SystemClock
from meshkit.identity import TokenVerifier, current_principal
from meshkit.revocations import Revocations
from meshkit.service_identity import (
    AUTHORITIES,
    IDENTITY,
    ServiceIdentity,
    channel_credentials,
    channel_options,
)
from meshkit.testing import identities
from meshkit.testing.calls import failure
from meshkit.testing.certificates import key_pem, new_key
from twinmesh.asset.v1 import profile_service_pb2 as pb
from twinmesh.asset.v1 import profile_service_pb2_grpc as pb_grpc

_NAME = "twinmesh.asset.v1.ProfileService"
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def _nothing(*_: object) -> Sequence[Any]:
    return []


class Profiles(pb_grpc.ProfileServiceServicer):
    """Tells who calls by which connection, and waits when it is told to."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.waiting = asyncio.Event()

    async def BatchGetTenants(self, request: Any, context: Any) -> pb.BatchGetTenantsResponse:
        self.waiting.set()
        await self.goes_on.wait()
        return pb.BatchGetTenantsResponse(
            tenants={"caller": current_principal().name, "connection": context.peer()}
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The identity of the service that is called."""
    made = tmp_path / "asset_svc"
    made.mkdir()
    _issue(made, "asset_svc")
    return made


@pytest.fixture
def profiles() -> Profiles:
    return Profiles()


@pytest.fixture
async def address(folder: Path, profiles: Profiles) -> AsyncIterator[str]:
    clock = SystemClock()
    verifier = TokenVerifier(
        fetch_keys=_nothing, revocations=Revocations(fetch=_nothing, clock=clock), clock=clock
    )
    door = Door(ServiceIdentity(folder), verifier, AuditTrail(send=_nothing, clock=clock))
    registration = server.Registration(_NAME, pb_grpc.add_ProfileServiceServicer_to_server, profiles)
    async with server.running_server(
        listen="127.0.0.1:0", door=door, callers=CALLERS, registrations=[registration], checks={}
    ) as port:
        yield f"127.0.0.1:{port}"


def _issue(
    folder: Path,
    name: str,
    *,
    authority: CertificateAuthority | None = None,
    now: datetime | None = None,
    life: timedelta = LIFE,
) -> Path:
    folder.mkdir(exist_ok=True)
    at = now or datetime.now(UTC)
    write_identity(authority or identities.authority(), name, Place(folder), now=at, life=life)
    return folder


def _channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    # Each with a connection of its own.
    options = [*channel_options("asset_svc"), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _ask(channel: grpc.aio.Channel) -> str:
    stub: Any = pb_grpc.ProfileServiceStub(channel)
    answer = await stub.BatchGetTenants(pb.BatchGetTenantsRequest(device_ids=["pump-1"]), timeout=10)
    return str(answer.tenants["caller"])


async def _code(address: str, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    async with _channel(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _ask(channel)
    code: grpc.StatusCode = refused.value.code()
    return code


async def test_a_listed_service_is_known_by_its_certificate(address: str) -> None:
    async with _channel(address, identities.credentials("ingest_svc")) as channel:
        assert await _ask(channel) == "service:ingest_svc"


async def test_without_a_certificate_of_the_mesh_nobody_connects(address: str, tmp_path: Path) -> None:
    authorities = identities.authority().bundle
    assert await _code(address, grpc.ssl_channel_credentials(authorities)) is _UNAVAILABLE
    async with grpc.aio.insecure_channel(address) as plain:
        assert (await failure_code(plain)) is _UNAVAILABLE
    make_authority(tmp_path / "foreign", identities.TRUST_DOMAIN)
    foreign = _issue(tmp_path / "a", "ingest_svc", authority=read_authority(tmp_path / "foreign"))
    publish(foreign / AUTHORITIES, authorities)
    assert await _code(address, channel_credentials(ServiceIdentity(foreign).present())) is _UNAVAILABLE


async def failure_code(channel: grpc.aio.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _ask(channel)
    code: grpc.StatusCode = refused.value.code()
    return code


async def test_an_expired_certificate_does_not_connect(address: str, tmp_path: Path) -> None:
    expired = _issue(tmp_path / "a", "ingest_svc", now=datetime.now(UTC) - 2 * LIFE)
    assert await _code(address, channel_credentials(ServiceIdentity(expired).present())) is _UNAVAILABLE


@pytest.mark.parametrize("version", list(ssl.TLSVersion)[2:6], ids=lambda version: version.name)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1(_1)? is deprecated:DeprecationWarning")
async def test_only_tls_from_1_2_on_connects(address: str, version: ssl.TLSVersion) -> None:
    tls = identities.tls()
    tls.minimum_version = tls.maximum_version = version
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")
    host, _, port = address.rpartition(":")
    opening = asyncio.open_connection(host, int(port), ssl=tls, server_hostname="asset_svc")
    if version >= ssl.TLSVersion.TLSv1_2:
        _, writer = await opening
        assert writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
        writer.close()
    else:
        # gRPC sends no alert.
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await opening


async def test_a_device_calls_no_service_not_even_for_its_health(address: str) -> None:
    authority, key = identities.authority(), new_key()
    certificate = authority.issue_for_device(
        authority.device_name("demo", "ingest_svc"), key.public_key(), now=datetime.now(UTC), life=LIFE
    )
    shown = grpc.ssl_channel_credentials(
        authority.bundle, key_pem(key), authority.chain(certificate).encode()
    )
    async with _channel(address, shown) as channel:
        stub: Any = pb_grpc.ProfileServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        for call in (
            stub.BatchGetTenants(pb.BatchGetTenantsRequest(device_ids=["pump-1"])),
            health.Check(health_pb2.HealthCheckRequest()),
            health.Watch(health_pb2.HealthCheckRequest()).read(),
        ):
            refused = await failure(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")


async def test_a_server_of_the_same_ca_is_no_client(address: str) -> None:
    authority, key = identities.authority(), new_key()
    certificate = authority.issue_for_server(
        ["ingest_svc"], key.public_key(), now=datetime.now(UTC), life=LIFE
    )
    shown = grpc.ssl_channel_credentials(
        authority.bundle, key_pem(key), authority.chain(certificate).encode()
    )
    assert await _code(address, shown) is _UNAVAILABLE


@pytest.mark.parametrize("caller", ["twin_svc", "maintenance", "launcher", "gateway", "asset_svc"])
async def test_a_service_that_is_not_listed_is_refused(address: str, caller: str) -> None:
    async with _channel(address, identities.credentials(caller)) as channel:
        refused = await failure(_ask(channel))
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_LISTED")
        assert refused.metadata == {"caller": caller}
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())


async def test_nobody_is_taken_for_another_service(address: str) -> None:
    """Whoever has the address of twin_svc, say, but not its certificate."""
    async with mutual_channel(
        address, service="twin_svc", identity=identities.identity("ingest_svc"), options=[]
    ) as channel:
        assert await failure_code(channel) is _UNAVAILABLE


async def test_a_server_shows_its_new_certificate_and_open_connections_go_on(
    address: str, folder: Path
) -> None:
    host, port = address.split(":")

    async def serial() -> int:
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=identities.tls(), server_hostname="asset_svc"
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(der).serial_number

    async with _channel(address, identities.credentials("ingest_svc")) as channel:
        assert await _ask(channel) == "service:ingest_svc"
        before = await serial()
        assert before == await serial()
        _issue(folder, "asset_svc")
        assert await serial() != before
        assert await _ask(channel) == "service:ingest_svc"


async def test_a_channel_shows_its_new_certificate_and_no_call_fails(
    address: str, profiles: Profiles, tmp_path: Path
) -> None:
    own = _issue(tmp_path / "ingest_svc", "ingest_svc")
    identity = ServiceIdentity(own)
    async with mutual_channel(address, service="asset_svc", identity=identity, options=[]) as channel:
        stub: Any = pb_grpc.ProfileServiceStub(channel)
        request = pb.BatchGetTenantsRequest(device_ids=["pump-1"])
        profiles.goes_on.clear()
        waiting = stub.BatchGetTenants(request)
        await profiles.waiting.wait()
        _issue(own, "ingest_svc")
        profiles.goes_on.set()
        answers = [await stub.BatchGetTenants(request) for _ in range(3)]
        before = (await waiting).tenants["connection"]
        (connection,) = {answer.tenants["connection"] for answer in answers}
        assert connection != before


def test_what_is_no_identity_of_the_service_leaves_it_as_it_was(folder: Path, tmp_path: Path) -> None:
    identity = ServiceIdentity(folder)
    before = identity.present()
    (folder / IDENTITY).write_text("garbage")
    assert identity.present() is before
    other = _issue(tmp_path / "other", "twin_svc")
    shutil.copy(other / IDENTITY, folder / IDENTITY)
    assert identity.present() is before
    _issue(folder, "asset_svc")
    assert identity.present() is not before


def test_identities_are_issued_again_when_half_of_their_time_is_over(tmp_path: Path) -> None:
    told: list[str] = []
    now = datetime.now(UTC)
    places = {name: Place(tmp_path / name) for name in ("auth_svc", "gateway")}
    for place in places.values():
        place.folder.mkdir()
    issued = Identities(identities.authority(), places, tell=told.append, now=lambda: now)
    issued.issue()
    first = {name: ServiceIdentity(place.folder).present() for name, place in places.items()}
    assert {name: each.name.name for name, each in first.items()} == {name: name for name in places}

    now += LIFE / 2 - timedelta(minutes=1)
    issued.renew()
    assert ServiceIdentity(places["auth_svc"].folder).present() == first["auth_svc"]
    now += timedelta(minutes=2)
    shutil.rmtree(places["gateway"].folder)
    issued.renew()
    assert len(told) == 1
    assert "certificate of gateway cannot be renewed" in told[0]
    assert ServiceIdentity(places["auth_svc"].folder).present().chain != first["auth_svc"].chain


def test_an_identity_that_is_lost_or_damaged_is_issued_again(tmp_path: Path) -> None:
    told: list[str] = []
    issued = Identities(identities.authority(), {"auth_svc": Place(tmp_path)}, tell=told.append)
    issued.issue()
    for harm in (Path.unlink, lambda path: path.write_text("garbage")):
        harm(tmp_path / IDENTITY)
        issued.renew()
        assert ServiceIdentity(tmp_path).name.name == "auth_svc"
    assert not told


def test_an_identity_that_cannot_be_read_for_a_while_is_read_when_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = ServiceIdentity(folder)
    before = identity.present()
    with monkeypatch.context() as patched:

        def no_more_files(_: Path) -> None:
            raise OSError("too many open files")

        patched.setattr("meshkit.service_identity._read", no_more_files)
        _issue(folder, "asset_svc")
        assert identity.present() is before
    assert identity.present() is not before
