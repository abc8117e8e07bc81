"""The account that a server gives of its calls."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from asset_svc import contract as asset_contract
from auth_svc import contract as auth_contract
from ingest_svc import contract as ingest_contract
from meshkit import audit, audit_messages, client, server
from meshkit.access import Door
from meshkit.audit import AuditEvent, AuditTrail
from meshkit.clock import SystemClock
from meshkit.errors import DomainError, InvalidArgument, not_found
from meshkit.identity import TokenVerifier
from meshkit.open_calls import current_call
from meshkit.revocations import RevocationKind, Revocations
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint, bearer
from tests.rpc.auth_app import until
from twin_svc import contract as twin_contract
from twinmesh.asset.v1 import device_service_pb2, device_service_pb2_grpc
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

TRACE = "0af7651916cd43dd8448eb211c80319c"
DEVICES = "/twinmesh.asset.v1.DeviceService/"


class Devices(device_service_pb2_grpc.DeviceServiceServicer):
    async def UpdateDevice(self, request: Any, context: Any) -> device_service_pb2.Device:
        audit.changed(["display_name", "tags"])
        return device_service_pb2.Device(id=request.device.id)

    async def BatchCreateDevices(self, request: Any, context: Any) -> Any:
        return device_service_pb2.BatchCreateDevicesResponse()

    async def GetDevice(self, request: Any, context: Any) -> device_service_pb2.Device:
        if request.id == "slow":
            await asyncio.Event().wait()
        raise not_found("device", request.id)


class Twins(twin_service_pb2_grpc.TwinServiceServicer):
    async def WatchTwins(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for token in ("a", "b"):
            yield twin_service_pb2.WatchTwinsResponse(bookmark=twin_service_pb2.Bookmark(resume_token=token))
        if request.ids:
            await asyncio.Event().wait()


class Ingest(ingest_service_pb2_grpc.IngestServiceServicer):
    async def CreateBackfill(self, request: Any, context: Any) -> ingest_service_pb2.Backfill:
        return ingest_service_pb2.Backfill(id="made-1")

    async def StreamTelemetry(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.HasField("reauthenticate"):
                call = current_call()
                call.renew(replace(call.principal, credential_id=request.reauthenticate.token))
            yield ingest_service_pb2.StreamTelemetryResponse()


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    async def Login(self, request: Any, context: Any) -> session_service_pb2.LoginResponse:
        audit.concerns(request.tenant, f"user:{request.username}")
        return session_service_pb2.LoginResponse()


class Account:
    """Keeps events in memory, when it is not away."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.batches: list[int] = []
        self.error: Exception | None = None
        self.asked = asyncio.Event()

    async def take(self, events: Sequence[AuditEvent]) -> None:
        self.asked.set()
        if self.error is not None:
            raise self.error
        self.batches.append(len(events))
        self.events += events

    async def event(self, rpc: str) -> AuditEvent:
        """Wait for the only event of an rpc."""
        async with asyncio.timeout(10):
            while not (found := [each for each in self.events if each.rpc.endswith(rpc)]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        (event,) = found
        return event


@pytest.fixture
def account() -> Account:
    return Account()


@pytest.fixture
async def channel(auth_address: str, account: Account) -> AsyncIterator[grpc.aio.Channel]:
    clock = SystemClock()
    identity = identities.identity("asset_svc")
    async with (
        client.service_channel(auth_address, service="auth_svc", identity=identity) as auth,
        (revocations := Revocations(fetch=client.fetch_revocations_from(auth), clock=clock)).polling(),
        AuditTrail(send=account.take, clock=clock) as trail,
        server.running_server(
            listen="127.0.0.1:0",
            registrations=[
                server.Registration(
                    "twinmesh.asset.v1.DeviceService",
                    device_service_pb2_grpc.add_DeviceServiceServicer_to_server,
                    Devices(),
                ),
                server.Registration(
                    "twinmesh.twin.v1.TwinService",
                    twin_service_pb2_grpc.add_TwinServiceServicer_to_server,
                    Twins(),
                ),
                server.Registration(
                    "twinmesh.ingest.v1.IngestService",
                    ingest_service_pb2_grpc.add_IngestServiceServicer_to_server,
                    Ingest(),
                ),
                server.Registration(
                    "twinmesh.auth.v1.SessionService",
                    session_service_pb2_grpc.add_SessionServiceServicer_to_server,
                    Sessions(),
                ),
            ],
            door=Door(
                identity,
                TokenVerifier(fetch_keys=client.fetch_keys_from(auth), revocations=revocations, clock=clock),
                trail,
            ),
            callers={
                **asset_contract.CALLERS,
                **twin_contract.CALLERS,
                **ingest_contract.CALLERS,
                **auth_contract.CALLERS,
            },
            checks={},
        ) as port,
        identities.channel(f"127.0.0.1:{port}", "asset_svc") as opened,
    ):
        yield opened


@pytest.fixture
def caller(mint: TokenMint) -> tuple[tuple[str, str], ...]:
    permissions = ["device:read", "device:write", "twin:read", "telemetry:write", "telemetry:backfill"]
    return (
        *bearer(mint.token(tenant="demo", permissions=permissions)),
        ("x-envoy-external-address", "192.0.2.7"),
        ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00"),
    )


async def test_a_write_is_recorded_whole(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    before = SystemClock().now_us()
    device = device_service_pb2.Device(id="pump-1", device_type_id="pump")
    await stub.UpdateDevice(device_service_pb2.UpdateDeviceRequest(device=device), metadata=caller)
    event = await account.event("UpdateDevice")
    assert re.fullmatch(r"[0-9a-f]{16}-1", event.id)
    assert before <= event.time_us <= SystemClock().now_us()
    assert 0 <= event.duration_us <= SystemClock().now_us() - before
    assert (event.tenant, event.principal, event.credential_id) == ("demo", "user:tester", "test-session")
    assert (event.address, event.rpc) == ("192.0.2.7", DEVICES + "UpdateDevice")
    assert (event.targets, event.code, event.trace_id) == (["pump-1"], code_pb2.OK, TRACE)
    assert event.changed_fields == ["display_name", "tags"]
    assert (event.received, event.sent) == (0, 0)


@pytest.mark.parametrize(
    ("rpc", "code"),
    [
        ("absent", code_pb2.NOT_FOUND),
        ("A/B", code_pb2.INVALID_ARGUMENT),
    ],
)
async def test_a_call_that_fails_is_recorded_with_its_code(
    channel: Any, caller: Any, account: Account, rpc: str, code: int
) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id=rpc), metadata=caller)
    event = await account.event("GetDevice")
    assert (event.code, event.targets, event.tenant) == (code, [rpc], "demo")


async def test_a_denied_call_names_who_was_denied(channel: Any, mint: TokenMint, account: Account) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    metadata = bearer(mint.token(tenant="demo", permissions=["twin:read"], kind="api_key", sub="k1"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="pump-1"), metadata=metadata)
    event = await account.event("GetDevice")
    assert (event.code, event.principal, event.tenant) == (code_pb2.PERMISSION_DENIED, "api_key:k1", "demo")
    assert (event.targets, event.address) == (["pump-1"], "127.0.0.1")


async def test_a_call_without_a_token_is_nobodys(channel: Any, account: Account) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="pump-1"))
    event = await account.event("GetDevice")
    assert (event.code, event.principal, event.tenant) == (code_pb2.UNAUTHENTICATED, "", "")


async def test_bytes_that_are_no_message_are_recorded(channel: Any, caller: Any, account: Account) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary(DEVICES + "GetDevice")(b"\x0a\xff", metadata=caller)
    event = await account.event("GetDevice")
    assert (event.code, event.targets) == (code_pb2.INVALID_ARGUMENT, [])


async def test_what_came_from_outside_is_cut_and_storable(
    channel: Any, caller: Any, account: Account
) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="\0" + "x" * 100_000), metadata=caller)
    event = await account.event("GetDevice")
    assert event.targets == ["x" * 255]


async def test_of_many_resources_the_first_are_named(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    devices = [device_service_pb2.Device(id=f"d{number}", device_type_id="t") for number in range(150)]
    await stub.BatchCreateDevices(
        device_service_pb2.BatchCreateDevicesRequest(devices=devices), metadata=caller
    )
    event = await account.event("BatchCreateDevices")
    assert event.targets == [f"d{number}" for number in range(100)]


async def test_names_that_are_made_up_are_kept_as_far_as_there_is_room(
    channel: Any, caller: Any, account: Account
) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    devices = [device_service_pb2.Device(id="\U0001d11e" * 30_000) for _ in range(4)]
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.BatchCreateDevices(
            device_service_pb2.BatchCreateDevicesRequest(devices=devices), metadata=caller
        )
    event = await account.event("BatchCreateDevices")
    assert event.targets == ["\U0001d11e" * 256] * 3


async def test_a_call_that_makes_a_resource_names_it(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
    request = ingest_service_pb2.CreateBackfillRequest()
    request.start_time.FromSeconds(1_000_000_000)
    request.end_time.FromSeconds(1_000_000_001)
    await stub.CreateBackfill(request, metadata=caller)
    assert (await account.event("CreateBackfill")).targets == ["made-1"]


async def test_a_log_in_is_of_whom_it_names(channel: Any, account: Account) -> None:
    stub: Any = session_service_pb2_grpc.SessionServiceStub(channel)
    await stub.Login(session_service_pb2.LoginRequest(tenant="acme", username="ada", password="p"))
    event = await account.event("Login")
    assert (event.tenant, event.principal, event.code) == ("acme", "user:ada", code_pb2.OK)


async def test_a_caller_that_leaves_ends_its_call(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="slow"), metadata=caller, timeout=3)
    assert (await account.event("GetDevice")).code == code_pb2.CANCELLED


async def test_a_stream_is_recorded_at_its_end(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    assert len([each async for each in stub.WatchTwins(_watch(), metadata=caller)]) == 2
    event = await account.event("WatchTwins")
    assert (event.code, event.received, event.sent) == (code_pb2.OK, 0, 2)


async def test_a_stream_that_is_left_is_recorded_then(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    call = stub.WatchTwins(_watch("pump-1"), metadata=caller)
    await call.read()
    await call.read()
    assert account.events == []
    call.cancel()
    event = await account.event("WatchTwins")
    assert (event.code, event.sent, event.targets) == (code_pb2.CANCELLED, 2, ["pump-1"])


async def test_a_stream_whose_credential_has_ended_is_recorded_as_refused(
    channel: Any, caller: Any, mint: TokenMint, account: Account
) -> None:
    stub: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
    call = stub.WatchTwins(_watch("pump-1"), metadata=caller)
    await call.read()
    mint.revoke(RevocationKind.SESSION, "test-session", tenant="demo")
    event = await account.event("WatchTwins")
    assert (event.code, event.principal) == (code_pb2.UNAUTHENTICATED, "user:tester")


def _watch(*ids: str) -> twin_service_pb2.WatchTwinsRequest:
    return twin_service_pb2.WatchTwinsRequest(ids=ids)


async def test_messages_of_both_ways_are_counted(channel: Any, caller: Any, account: Account) -> None:
    stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
    close = ingest_service_pb2.StreamTelemetryRequest(close=ingest_service_pb2.Close())
    answers = [each async for each in stub.StreamTelemetry(iter([close] * 3), metadata=caller)]
    event = await account.event("StreamTelemetry")
    assert (event.code, event.received, event.sent) == (code_pb2.OK, 3, len(answers))
    assert len(answers) == 3


async def test_health_is_not_recorded(channel: Any, caller: Any, account: Account) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    await health.Check(health_pb2.HealthCheckRequest())
    stub: Any = device_service_pb2_grpc.DeviceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetDevice(device_service_pb2.GetDeviceRequest(id="absent"), metadata=caller)
    await account.event("GetDevice")
    assert len(account.events) == 1


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/twinmesh.mesh.v1.HealthService/GetReadiness",
        "/twinmesh.auth.v1.AuditService/RecordAuditEvents",
        "/twinmesh.auth.v1.RevocationService/ListRevocations",
        "/twinmesh.auth.v1.TenantDeletionService/ListClosedTenants",
        "/twinmesh.asset.v1.ProfileService/ListDeletedDevices",
        "/twinmesh.ingest.v1.ConnectionService/HoldConnections",
        "/envoy.service.auth.v3.Authorization/Check",
    ],
)
def test_what_machines_ask_over_and_over_is_not_recorded(method: str) -> None:
    assert not audit.is_recorded(method)
    assert audit.is_recorded("/twinmesh.auth.v1.AuditEventService/ListAuditEvents")
    assert audit.is_recorded("/twinmesh.auth.v1.TenantDeletionService/ReportTenantDeleted")


@asynccontextmanager
async def trail(account: Account, **arguments: Any) -> AsyncIterator[tuple[AuditTrail, Callable[[], None]]]:
    """A trail, and what makes a call of it."""
    async with AuditTrail(send=account.take, clock=SystemClock(), **arguments) as opened:

        def call() -> None:
            with opened.call("/a.b/C", None, recorded=True):
                pass

        yield opened, call


def numbers(account: Account) -> list[int]:
    return [int(event.id.rpartition("-")[2]) for event in account.events]


async def test_while_nobody_takes_events_they_wait_and_more_are_counted(account: Account) -> None:
    account.error = ConnectionError("away")
    async with trail(account, most_waiting=3) as (opened, call):
        for _ in range(5):
            call()
        await account.asked.wait()
        assert (opened.lost, account.events) == (2, [])
        account.error = None
    assert numbers(account) == [1, 2, 3]
    assert opened.lost == 2


async def test_events_go_in_batches_and_at_the_end_all_of_them(account: Account) -> None:
    async with trail(account) as (opened, call):
        for _ in range(2_500):
            call()
    assert account.batches == [1_000, 1_000, 500]
    assert numbers(account) == list(range(1, 2_501))
    assert opened.lost == 0


async def test_what_cannot_be_sent_in_the_end_is_counted(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshkit.audit._FLUSH_S", 0.2)
    account.error = ConnectionError("away")
    async with trail(account) as (opened, call):
        call()
        call()
    assert (opened.lost, account.events) == (2, [])


async def test_a_batch_that_is_refused_holds_up_none_behind_it(account: Account) -> None:
    refused: DomainError = InvalidArgument("no", reason=ErrorReason.ERROR_REASON_INVALID_FIELD)
    account.error = refused
    async with trail(account) as (opened, call):
        call()
        await account.asked.wait()
        account.error = None
        call()
    assert numbers(account) == [2]
    assert opened.lost == 1


async def test_events_keep_what_is_known_of_them_on_their_way(auth_address: str, mint: TokenMint) -> None:
    event = AuditEvent(
        id="0123456789abcdef-1",
        time_us=1_700_000_000_000_001,
        tenant="demo",
        principal="user:ada",
        credential_id="s1",
        address="192.0.2.7",
        rpc="/a.b/C",
        targets=["x", "y"],
        code=code_pb2.ABORTED,
        duration_us=1_000_001,
        trace_id=TRACE,
        changed_fields=["role"],
        received=2**40,
        sent=7,
    )
    async with identities.channel(auth_address, "auth_svc", caller="asset_svc") as auth:
        await client.send_audit_to(auth)([event])
    (message,) = mint.audit_events
    assert audit_messages.from_message(message) == event


async def test_a_stream_has_a_record_for_each_credential_that_it_went_on_with(
    channel: grpc.aio.Channel, account: Account, mint: TokenMint
) -> None:
    stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
    call = stub.StreamTelemetry(
        metadata=bearer(mint.token(tenant="demo", subject="ada", permissions=["telemetry:write"]))
    )
    batch = ingest_service_pb2.StreamTelemetryRequest(batch=ingest_service_pb2.Batch(sequence=1))
    for token in ("", "second", "second"):
        renewal = ingest_service_pb2.StreamTelemetryRequest(
            reauthenticate=ingest_service_pb2.Reauthenticate(token=token)
        )
        for request in ([renewal] if token else []) + [batch, batch]:
            await call.write(request)
            await call.read()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF

    async def are_there() -> bool:
        return len(account.events) == 2

    await until(are_there)
    first, second = account.events
    assert first.principal == second.principal == "user:ada"
    assert (second.credential_id, first.credential_id == "second") == ("second", False)
    # The message that brings the new one came with the former.
    assert ((first.received, first.sent), (second.received, second.sent)) == ((3, 2), (5, 6))
    assert (first.code, second.code) == (code_pb2.OK, code_pb2.OK)
    assert first.time_us + first.duration_us == second.time_us
