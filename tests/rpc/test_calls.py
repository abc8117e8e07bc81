"""What happens around every rpc: identity, permission, validation, errors, deadline."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asset_svc import contract as asset_contract
from auth_svc import contract as auth_contract
from meshkit import client, identity, interceptors, server, status
from meshkit.access import Door
from meshkit.audit import AuditTrail
from meshkit.callers import GATEWAY
from meshkit.clock import SystemClock
from meshkit.errors import not_found
from meshkit.identity import TokenVerifier
from meshkit.request_memory import CALL_BYTES, RequestMemory
from meshkit.revocations import RevocationKind, Revocations
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from meshkit.testing.calls import failure
from tests.rpc.ingest.neighbours import until
from twin_svc import contract as twin_contract
from twinmesh.asset.v1 import profile_service_pb2, profile_service_pb2_grpc
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import connection_service_pb2, connection_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh_cli.identities import connect

_IDENTITY = identities.identity("asset_svc")
GetTwin = twin_service_pb2.GetTwinRequest


class Twins(twin_service_pb2_grpc.TwinServiceServicer):
    """Answers by the id that is asked for.

    Attributes:
        left: set when a watch that goes on for ever was ended.
        answered: lets those go on that asked for what is slow.
    """

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.answered = asyncio.Event()

    async def GetTwin(self, request: Any, context: Any) -> twin_service_pb2.Twin:
        if request.id == "absent":
            raise not_found("twin", request.id)
        if request.id == "slow":
            await self.answered.wait()
        if request.id == "broken":
            raise RuntimeError("secret detail")
        if request.id == "database-away":
            raise asyncpg.ConnectionDoesNotExistError("connection was closed")
        if request.id == "database-bug":
            raise asyncpg.UndefinedTableError("relation does not exist")
        caller = identity.current_principal()
        return twin_service_pb2.Twin(id=request.id, display_name=f"{caller.tenant} {caller.name}")

    async def WatchTwins(
        self, request: Any, context: Any
    ) -> AsyncIterator[twin_service_pb2.WatchTwinsResponse]:
        bookmark = twin_service_pb2.Bookmark(resume_token="x" * 100_000)
        try:
            while request.ids:
                yield twin_service_pb2.WatchTwinsResponse(bookmark=bookmark)
                if "silence" in request.ids:
                    await asyncio.Event().wait()
        finally:
            self.left.set()
        for token in ("a", "b"):
            yield twin_service_pb2.WatchTwinsResponse(bookmark=twin_service_pb2.Bookmark(resume_token=token))
        raise not_found("twin", "c")


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    """Whose log-ins take until they are let go on."""

    def __init__(self, twins: Twins) -> None:
        self._twins = twins

    async def Login(self, request: Any, context: Any) -> session_service_pb2.LoginResponse:
        await self._twins.answered.wait()
        return session_service_pb2.LoginResponse(access_token="token")


class Profiles(profile_service_pb2_grpc.ProfileServiceServicer):
    async def BatchGetProfiles(
        self, request: Any, context: Any
    ) -> profile_service_pb2.BatchGetProfilesResponse:
        return profile_service_pb2.BatchGetProfilesResponse()


@pytest.fixture
def servicer() -> Twins:
    return Twins()


@pytest.fixture
def memory() -> RequestMemory:
    """Room for ten calls."""
    return RequestMemory(10 * (CALL_BYTES + 100))


@pytest.fixture
async def address(auth_address: str, servicer: Twins, memory: RequestMemory) -> AsyncIterator[str]:
    async with (
        client.service_channel(auth_address, service="auth_svc", identity=_IDENTITY) as auth,
        (
            revocations := Revocations(fetch=client.fetch_revocations_from(auth), clock=SystemClock())
        ).polling(),
    ):
        verifier = TokenVerifier(
            fetch_keys=client.fetch_keys_from(auth), revocations=revocations, clock=SystemClock()
        )
        registrations = [
            server.Registration(
                "twinmesh.twin.v1.TwinService",
                twin_service_pb2_grpc.add_TwinServiceServicer_to_server,
                servicer,
            ),
            server.Registration(
                "twinmesh.auth.v1.SessionService",
                session_service_pb2_grpc.add_SessionServiceServicer_to_server,
                Sessions(servicer),
            ),
            server.Registration(
                "twinmesh.asset.v1.ProfileService",
                profile_service_pb2_grpc.add_ProfileServiceServicer_to_server,
                Profiles(),
            ),
        ]
        async with (
            AuditTrail(send=client.send_audit_to(auth), clock=SystemClock()) as audit,
            server.running_server(
                listen="127.0.0.1:0",
                door=Door(_IDENTITY, verifier, audit),
                callers={**asset_contract.CALLERS, **auth_contract.CALLERS, **twin_contract.CALLERS},
                registrations=registrations,
                checks={},
                memory=memory,
            ) as port,
        ):
            yield f"127.0.0.1:{port}"


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with identities.channel(address, "asset_svc") as opened:
        yield opened


@pytest.fixture
def twins(channel: grpc.aio.Channel) -> Any:
    return twin_service_pb2_grpc.TwinServiceStub(channel)


@pytest.fixture
def reader(mint: TokenMint) -> tuple[tuple[str, str], ...]:
    return bearer(mint.token(tenant="demo", permissions=["twin:read"]))


async def test_a_verified_caller_reaches_the_handler(twins: Any, reader: Any) -> None:
    twin = await twins.GetTwin(GetTwin(id="pump-1"), metadata=reader)
    assert twin.display_name == "demo user:tester"


async def test_nobody_is_unauthenticated(twins: Any) -> None:
    refused = await failure(twins.GetTwin(GetTwin(id="pump-1")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int(time.time()) - 60},
        {"nbf": int(time.time()) + 86_400},
        {"aud": "elsewhere"},
        {"iss": "elsewhere"},
        {"kind": "god"},
        {"perms": 7},
    ],
)
async def test_a_wrong_token_is_refused(twins: Any, mint: TokenMint, claims: dict[str, Any]) -> None:
    token = mint.token(tenant="demo", permissions=["twin:read"], **claims)
    refused = await failure(twins.GetTwin(GetTwin(id="pump-1"), metadata=bearer(token)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_foreign_key_is_refused(twins: Any) -> None:
    for kid in ("test-key", "other"):
        token = TokenMint(kid=kid).token(tenant="demo", permissions=["twin:read"])
        refused = await failure(twins.GetTwin(GetTwin(id="pump-1"), metadata=bearer(token)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_missing_permission_is_named(twins: Any, mint: TokenMint) -> None:
    token = mint.token(tenant="demo", permissions=["history:read"])
    refused = await failure(twins.GetTwin(GetTwin(id="pump-1"), metadata=bearer(token)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert refused.metadata == {"permission": "twin:read"}


async def test_services_reach_what_users_may_not_claim(
    channel: grpc.aio.Channel, address: str, mint: TokenMint
) -> None:
    request = profile_service_pb2.BatchGetProfilesRequest(tenant="demo")
    async with identities.channel(address, "asset_svc", caller="ingest_svc") as internal:
        stub: Any = profile_service_pb2_grpc.ProfileServiceStub(internal)
        await client.call(stub.BatchGetProfiles, request, peer="asset_svc")
    token = mint.token(tenant="demo", permissions=["profile:read"])
    outside: Any = profile_service_pb2_grpc.ProfileServiceStub(channel)
    refused = await failure(outside.BatchGetProfiles(request, metadata=bearer(token)))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("bad_id", ["", "a/b", "a*", "a>", "a b", "x" * 10_000, "-a", "A"])
async def test_every_broken_rule_is_named(twins: Any, reader: Any, bad_id: str) -> None:
    refused = await failure(twins.GetTwin(GetTwin(id=bad_id), metadata=reader))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["id"])


@pytest.mark.parametrize("method", ["GetTwin", "WatchTwins"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    channel: Any, reader: Any, method: str
) -> None:
    path = f"/twinmesh.twin.v1.TwinService/{method}"
    if method == "GetTwin":
        refused = await failure(channel.unary_unary(path)(b"\x0a\xff", metadata=reader))
    else:
        refused = await failure(channel.unary_stream(path)(b"\x0a\xff", metadata=reader).read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_domain_errors_keep_their_details(twins: Any, reader: Any) -> None:
    refused = await failure(twins.GetTwin(GetTwin(id="absent"), metadata=reader))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert refused.metadata == {"resource": "twin", "id": "absent"}


@pytest.mark.parametrize("defect", ["broken", "database-bug"])
async def test_the_unforeseen_tells_nothing(twins: Any, reader: Any, defect: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await twins.GetTwin(GetTwin(id=defect), metadata=reader)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "internal error" in (caught.value.details() or "")


async def test_a_lost_database_is_retryable(twins: Any, reader: Any) -> None:
    refused = await failure(twins.GetTwin(GetTwin(id="database-away"), metadata=reader))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert refused.metadata == {"dependency": "postgresql"}


async def test_streams_pass_the_same_door(twins: Any, reader: Any) -> None:
    call = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(), metadata=reader)
    assert [(await call.read()).bookmark.resume_token for _ in range(2)] == ["a", "b"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await twins.WatchTwins(twin_service_pb2.WatchTwinsRequest()).read()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("how", ["revoked", "credential expired", "token expired"])
@pytest.mark.parametrize("what", ["silence", "flood"])
async def test_a_stream_ends_with_its_credential_whatever_its_handler_does(
    twins: Any, servicer: Twins, mint: TokenMint, how: str, what: str
) -> None:
    soon = time.time() + 5
    claims: dict[str, dict[str, Any]] = {
        "revoked": {},
        "credential expired": {"kind": "api_key", "cred_exp": soon},
        "token expired": {"exp": soon},
    }
    caller = bearer(mint.token(tenant="demo", permissions=["twin:read"], **claims[how]))
    call = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(ids=[what]), metadata=caller)
    await call.read()
    if how == "revoked":
        mint.revoke(RevocationKind.SESSION, "test-session", tenant="demo")
    if what == "flood":
        # It is not read, so that the server waits; the client learns of the end behind what was on its way.
        await until_refused(twins, caller)

    async def read_on() -> None:
        while await call.read():
            pass

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read_on()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_REVOKED" if how == "revoked" else "TOKEN_INVALID"
    assert status.error_info_of(ended.value).reason == reason
    await servicer.left.wait()


async def until_refused(twins: Any, caller: Any) -> None:
    async def go_on() -> None:
        while True:
            await twins.GetTwin(GetTwin(id="pump-1"), metadata=caller)
            await asyncio.sleep(0.05)

    async with asyncio.timeout(10):
        assert (await failure(go_on())).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_that_waits_for_much_leaves_room_for_others(
    twins: Any, servicer: Twins, memory: RequestMemory, mint: TokenMint
) -> None:
    def as_of(tenant: str) -> Any:
        return bearer(mint.token(tenant=tenant, permissions=["twin:read"]))

    slow = [twins.GetTwin(GetTwin(id="slow"), metadata=as_of("demo")) for _ in range(5)]
    await until(lambda: memory.used > 5 * CALL_BYTES)
    refused = await failure(twins.GetTwin(GetTwin(id="pump"), metadata=as_of("demo")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUESTS_BUSY")
    assert refused.metadata["limit_name"] == "request_bytes"
    # Of a watch it is kept as long as that is open, and whoever may not ask takes nothing.
    watch = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(ids=["silence"]), metadata=as_of("acme"))
    await watch.read()
    assert (await twins.GetTwin(GetTwin(id="pump"), metadata=as_of("acme"))).id == "pump"
    await until(lambda: memory.used < 7 * CALL_BYTES)
    held = memory.used
    assert (await failure(twins.GetTwin(GetTwin(id="slow")))).reason == "CREDENTIAL_MISSING"
    assert memory.used == held
    watch.cancel()
    servicer.answered.set()
    await asyncio.gather(*slow)
    await until(lambda: memory.used == 0)
    assert (await twins.GetTwin(GetTwin(id="pump"), metadata=as_of("demo"))).id == "pump"


async def test_what_ends_in_any_way_gives_its_room_back(
    twins: Any, servicer: Twins, memory: RequestMemory, reader: Any
) -> None:
    for ends in ("absent", "broken", "database-away", ""):
        await failure(twins.GetTwin(GetTwin(id=ends), metadata=reader))
    given_up = twins.GetTwin(GetTwin(id="slow"), metadata=reader)
    await until(lambda: memory.used > 0)
    given_up.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        await twins.GetTwin(GetTwin(id="slow"), metadata=reader, timeout=0.05)
    # Nobody reads it, so that its writes wait.
    flood = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(ids=["flood"]), metadata=reader)
    await until(lambda: memory.used > 0)
    flood.cancel()
    await until(lambda: memory.used == 0)


async def test_large_log_ins_of_anybody_keep_neither_small_ones_nor_tenants_out(
    channel: grpc.aio.Channel,
    servicer: Twins,
    memory: RequestMemory,
    reader: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interceptors, "_UNCOUNTED_BYTES", 1_000)
    request = session_service_pb2.LoginRequest(tenant="demo", username="ada", password="secret")
    # As an older server sees what a newer client sends.
    unknown = request.SerializeToString() + b"\x82\x7d\xd0\x0f" + bytes(2_000)

    call: Any = channel.unary_unary("/twinmesh.auth.v1.SessionService/Login")

    async def log_in(payload: bytes) -> None:
        await call(payload)

    large = [asyncio.create_task(log_in(unknown)) for _ in range(4)]
    refused, waiting = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
    assert (await failure(refused.pop())).reason == "REQUESTS_BUSY"
    assert (len(waiting), memory.used > 3 * CALL_BYTES) == (3, True)
    held = memory.used
    small = [asyncio.create_task(log_in(request.SerializeToString())) for _ in range(20)]
    twins: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    assert (await twins.GetTwin(GetTwin(id="pump"), metadata=reader)).id == "pump"
    await until(lambda: memory.used == held)
    servicer.answered.set()
    await asyncio.gather(*small, *waiting)


async def test_a_message_that_is_too_large_for_what_is_left_takes_no_room(
    twins: Any, memory: RequestMemory, reader: Any
) -> None:
    call = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(ids=["x" * 100] * 250), metadata=reader)
    refused = await failure(call.read())
    assert refused.reason == "REQUESTS_BUSY"
    assert (memory.used, refused.metadata["used"]) == (0, "0")


@pytest.mark.parametrize("memory", [RequestMemory()], ids=["with-room"])
async def test_between_large_requests_others_are_answered(
    twins: Any, address: str, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def takes_long(_: Any) -> None:
        nonlocal read
        read += 1
        time.sleep(0.05)

    # From here on the server knows the caller's key, and has nothing to wait for.
    await twins.GetTwin(GetTwin(id="pump"), metadata=reader)
    monkeypatch.setattr(interceptors, "validate", takes_long)
    large = GetTwin(id="x" * 3_000_000)
    with connect(address, service="asset_svc", identity=identities.identity(GATEWAY)) as channel:
        stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        asked = [stub.GetTwin.future(large, metadata=reader) for _ in range(20)]
        await until(lambda: read > 0)
        health: Any = health_pb2_grpc.HealthStub(channel)
        await asyncio.to_thread(health.Check, health_pb2.HealthCheckRequest())
        assert read < len(asked)
        codes = await asyncio.to_thread(lambda: {request.code() for request in asked})
    assert (codes, read) == ({grpc.StatusCode.OK}, len(asked))


async def test_calls_that_arrive_all_at_once_wait_and_none_is_cancelled(address: str) -> None:
    with connect(address, service="asset_svc", identity=identities.identity("launcher")) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        # Sent without a pause for the server's event loop, which is this one.
        calls = [stub.Check.future(health_pb2.HealthCheckRequest()) for _ in range(6000)]
        codes = await asyncio.to_thread(lambda: {call.code() for call in calls})
    assert codes == {grpc.StatusCode.OK}


async def test_health_follows_the_dependencies(auth_address: str) -> None:
    works = asyncio.Event()
    works.set()

    async def dependency() -> None:
        if not works.is_set():
            raise ConnectionError("away")

    async def away() -> None:
        raise ConnectionError("away")

    async with (
        client.service_channel(auth_address, service="auth_svc", identity=_IDENTITY) as auth,
        (
            revocations := Revocations(fetch=client.fetch_revocations_from(auth), clock=SystemClock())
        ).polling(),
    ):
        verifier = TokenVerifier(
            fetch_keys=client.fetch_keys_from(auth), revocations=revocations, clock=SystemClock()
        )
        async with (
            AuditTrail(send=client.send_audit_to(auth), clock=SystemClock()) as audit,
            server.running_server(
                listen="127.0.0.1:0",
                door=Door(_IDENTITY, verifier, audit),
                callers={},
                registrations=[],
                checks={"postgresql": dependency},
                hints={"nats": away},
            ) as port,
            identities.channel(f"127.0.0.1:{port}", "asset_svc", caller="launcher") as channel,
        ):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="postgresql"))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            hint = await stub.Check(health_pb2.HealthCheckRequest(service="nats"))
            assert hint.status == health_pb2.HealthCheckResponse.NOT_SERVING
            whole = await stub.Check(health_pb2.HealthCheckRequest())
            assert whole.status == health_pb2.HealthCheckResponse.SERVING
            works.clear()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            whole = await stub.Check(health_pb2.HealthCheckRequest())
            assert whole.status == health_pb2.HealthCheckResponse.NOT_SERVING
            works.set()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


class Counter(connection_service_pb2_grpc.ConnectionServiceServicer):
    """Grants what is asked for, as ingest_svc does, and keeps how many tenants each call named."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.tenants: dict[str, int] = {}
        self.has_all = asyncio.Event()

    async def HoldConnections(self, request: Any, context: Any) -> Any:
        self.sizes.append(len(request.tenants))
        self.tenants |= {each.tenant: each.connections for each in request.tenants}
        if len(self.tenants) == 20_001:
            self.has_all.set()
        return connection_service_pb2.HoldConnectionsResponse(
            tenants=[
                connection_service_pb2.HeldConnections(
                    granted=each.connections, used=each.connections, limit=100
                )
                for each in request.tenants
            ]
        )


async def test_connections_of_any_number_of_tenants_are_held_by_calls_that_the_contract_allows() -> None:
    counter, counting = Counter(), grpc.aio.server()
    connection_service_pb2_grpc.add_ConnectionServiceServicer_to_server(counter, counting)
    credentials = identities.identity("ingest_svc").server_credentials()
    address = f"127.0.0.1:{counting.add_secure_port('127.0.0.1:0', credentials)}"
    await counting.start()
    try:
        async with client.counting_connections(
            address, identity=_IDENTITY, holder=uuid.uuid4()
        ) as connections:
            connections.recount({f"t{number}": 1 for number in range(20_001)})
            async with asyncio.timeout(60):
                await counter.has_all.wait()
    finally:
        await counting.stop(0)
    assert max(counter.sizes) == 10_000
