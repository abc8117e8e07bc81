"""How gateway streams end: fenced, expired, at the end of their life, with the process, with the client."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from structlog.testing import CapturingLogger

from meshkit.caller_address import ADDRESS_HEADER
from meshkit.errors import DomainError, PermissionDenied, ResourceExhausted
from meshkit.revocations import RevocationKind
from meshkit.testing import identities
from meshkit.testing.auth import bearer
from tests.rpc.ingest.neighbours import TENANT, Ingest, Refused, reading, running_ingest, serving, until
from tests.rpc.ingest.streaming import NOW_US, Client, columns, opened, streaming
from tests.store.broken_line import Break, BrokenLine
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
# So that little is on the way to a client that does not read.
_SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
FENCED = Refused(grpc.StatusCode.FAILED_PRECONDITION, "FENCED")


@asynccontextmanager
async def another(ingest: Ingest, auth_address: str, **settings: Any) -> AsyncIterator[Ingest]:
    """Run one more ingest process on the same database."""
    async with (
        serving(ingest.assets) as asset_address,
        running_ingest(
            database=ingest.database,
            nats_url=ingest.nats_url,
            auth_address=auth_address,
            mint=ingest.mint,
            assets=ingest.assets,
            asset_address=asset_address,
            **settings,
        ) as other,
    ):
        yield other


async def test_a_later_stream_of_the_process_fences_the_older_at_once(ingest: Ingest) -> None:
    async with opened(ingest) as older, opened(ingest) as later:
        assert await older.fails() == FENCED
        await later.batch(1, columns(1.0))
        await later.durable(1)


async def test_a_later_stream_of_another_process_fences_the_older(ingest: Ingest, auth_address: str) -> None:
    async with another(ingest, auth_address) as elsewhere, opened(ingest) as older:
        await older.batch(1, columns(1.0))
        await older.durable(1)
        async with streaming(elsewhere) as later:
            told = await later.open()
            assert (told.epoch, told.last_committed_sequence) == (2, 1)
            await older.batch(2, columns(1.0))
            assert await older.fails() == FENCED
            await later.define(("pump-1", "temperature"))
            await later.batch(2, columns(1.0))
            await later.durable(2)
    assert len(await ingest.samples()) == 2


async def test_a_run_resumes_until_another_one_takes_over(ingest: Ingest, auth_address: str) -> None:
    async with (
        another(ingest, auth_address) as elsewhere,
        opened(ingest, session_id="a") as first,
        opened(elsewhere, session_id="a", resume=True) as resumed,
    ):
        await first.batch(1, columns(1.0))
        assert await first.fails() == FENCED
        async with opened(elsewhere, session_id="b") as other:
            assert await resumed.fails() == FENCED
            for where in (ingest, elsewhere):
                async with streaming(where) as late:
                    await late.send(open=ingest_pb2.Open(writer_id="gw", session_id="a", resume=True))
                    assert await late.fails() == FENCED
            await other.batch(1, columns(2.0))
            await other.durable(1)
    assert [*(await ingest.samples()).values()] == [2.0]


async def test_resume_names_the_run(ingest: Ingest) -> None:
    async with streaming(ingest) as client:
        await client.send(open=ingest_pb2.Open(writer_id="gw", resume=True))
        assert await client.fails() == Refused(
            grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", fields=["open"]
        )


async def test_two_processes_at_one_cursor_store_each_batch_once(ingest: Ingest, auth_address: str) -> None:
    sent = [columns(float(sequence)) for sequence in range(1, 41)]

    async def send_all(where: Ingest) -> None:
        """Send everything, and reopen when fenced, as no client should."""
        while True:
            async with streaming(where) as client:
                try:
                    at = (await client.open()).last_committed_sequence
                    await client.define(("pump-1", "temperature"))
                    for sequence in range(at + 1, len(sent) + 1):
                        await client.batch(sequence, sent[sequence - 1])
                    if at < len(sent):
                        await client.durable(len(sent))
                    return
                except (AssertionError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    # A call that ends while it is written to may get grpc.aio's own INTERNAL.
                    assert await client.call.code() in {
                        grpc.StatusCode.FAILED_PRECONDITION,
                        grpc.StatusCode.INTERNAL,
                    }

    async with another(ingest, auth_address) as elsewhere:
        await asyncio.gather(send_all(ingest), send_all(elsewhere))
    assert sorted((await ingest.samples()).values()) == [float(value) for value in range(1, 41)]
    assert await ingest.fetch_value("SELECT sum(cardinality(times)) FROM telemetry.segment") == 40


async def test_a_stream_asks_to_reconnect_before_the_end_of_its_life(
    ingest: Ingest, auth_address: str
) -> None:
    async with another(ingest, auth_address, max_stream_lifetime_seconds=3) as short:
        async with opened(short) as client:
            await client.batch(1, columns(1.0))
            told = await client.go_away()
            assert told.drain_by.ToMicroseconds() > time.time_ns() // 1000 - 1_000_000
            await client.ends()  # By itself, though the client does not close.
        async with streaming(short) as client:
            assert (await client.open()).last_committed_sequence == 1


async def test_a_stopping_process_asks_its_streams_to_reconnect(ingest: Ingest, auth_address: str) -> None:
    started, stop = asyncio.Event(), asyncio.Event()
    running: list[Ingest] = []

    async def run() -> None:
        async with another(ingest, auth_address) as stopping:
            running.append(stopping)
            started.set()
            await stop.wait()

    process = asyncio.create_task(run())
    await started.wait()
    (stopping,) = running
    async with opened(stopping) as client, opened(stopping, "second") as second:
        await client.batch(1, columns(1.0))
        stop.set()
        await client.go_away()
        await second.go_away()
        assert not await stopping.is_serving()
        async with streaming(stopping) as late:
            told = await late.fails()
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert told.metadata == {"dependency": "ingest_svc"}
        await client.batch(2, columns(1.0))
        assert (await client.close())[-1].ack.durable_through == 2
        await second.close()
    await process  # Long before the time that streams have to leave.
    assert len(await ingest.samples()) == 2


@pytest.mark.parametrize("kind", ["user", "api_key"])
async def test_a_stream_ends_with_what_was_shown(ingest: Ingest, kind: str) -> None:
    soon = time.time() + 5
    ends: dict[str, Any] = {"exp": soon} if kind == "user" else {"cred_exp": soon}
    token = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"], kind=kind, **ends)
    async with streaming(ingest, caller=bearer(token)) as client:
        await client.open()
        assert await client.fails() == Refused(UNAUTHENTICATED, "TOKEN_INVALID")
    assert time.time() >= soon


@pytest.mark.parametrize("kind", ["token", "API key"])
async def test_another_credential_keeps_a_stream_open(ingest: Ingest, kind: str) -> None:
    soon = time.time() + 5
    token = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"], exp=soon)
    later = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"])
    ingest.mint.api_keys["tmk_acme_1_s"] = later
    async with streaming(ingest, caller=bearer(token)) as client:
        await client.open()
        credential = later if kind == "token" else "tmk_acme_1_s"
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token=credential))
        await client.batch(1)
        await client.durable(1)
        await asyncio.sleep(max(0.0, soon - time.time()) + 1)  # Time itself is what is waited for.
        await client.batch(2)
        await client.durable(2)


@pytest.mark.parametrize(
    ("kind", "id_"),
    [
        (RevocationKind.SESSION, "test-session"),
        (RevocationKind.USER, "tester"),
        (RevocationKind.TENANT, TENANT),
    ],
)
async def test_a_stream_ends_when_what_opened_it_is_revoked(
    ingest: Ingest, kind: RevocationKind, id_: str
) -> None:
    caller = bearer(ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"]))
    async with streaming(ingest, caller=caller) as client, streaming(ingest, caller=others(ingest)) as spared:
        await client.open()
        await spared.open("spared")
        await client.batch(1)
        await client.durable(1)
        ingest.mint.revoke(kind, id_, tenant="other")
        ingest.mint.revoke(kind, id_, tenant=TENANT)
        assert await client.fails() == Refused(UNAUTHENTICATED, "TOKEN_REVOKED")
        async with streaming(ingest, caller=caller) as late:
            assert await late.fails() == Refused(UNAUTHENTICATED, "TOKEN_REVOKED")
        if kind != RevocationKind.TENANT:
            await spared.close()


def others(ingest: Ingest) -> tuple[tuple[str, str], ...]:
    """Return the metadata of another user of the tenant."""
    return bearer(
        ingest.mint.token(
            tenant=TENANT, permissions=["telemetry:write"], subject="another", cred_id="another"
        )
    )


async def test_a_stream_with_a_new_session_outlives_the_one_before(ingest: Ingest) -> None:
    later = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"], cred_id="later")
    ended = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"], cred_id="ended")
    async with (
        streaming(ingest) as client,
        streaming(ingest, caller=bearer(ended)) as witness,
    ):
        await client.open()
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token=later))
        await client.batch(1)
        await client.durable(1)
        await witness.open("witness")
        ingest.mint.revoke(RevocationKind.SESSION, "test-session", tenant=TENANT)
        ingest.mint.revoke(RevocationKind.SESSION, "ended", tenant=TENANT)
        assert await witness.fails() == Refused(UNAUTHENTICATED, "TOKEN_REVOKED")
        await client.batch(2)
        await client.durable(2)
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token=ended))
        assert await client.fails() == Refused(UNAUTHENTICATED, "TOKEN_REVOKED")


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"subject": "somebody"}, Refused(UNAUTHENTICATED, "TOKEN_INVALID")),
        ({"tenant": "other"}, Refused(UNAUTHENTICATED, "TOKEN_INVALID")),
        (
            {"permissions": ["telemetry:read"]},
            Refused(
                grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING", {"permission": "telemetry:write"}
            ),
        ),
    ],
)
async def test_another_principals_credential_ends_the_stream(
    ingest: Ingest, claims: dict[str, Any], expected: Refused
) -> None:
    usual: dict[str, Any] = {"tenant": TENANT, "permissions": ["telemetry:write"]}
    token = ingest.mint.token(**{**usual, **claims})
    async with opened(ingest) as client:
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token=token))
        assert await client.fails() == expected


@pytest.mark.parametrize(("credential", "reason"), [("junk", "TOKEN_INVALID"), ("tmk_x", "API_KEY_INVALID")])
async def test_a_bad_credential_ends_the_stream(ingest: Ingest, credential: str, reason: str) -> None:
    async with opened(ingest) as client:
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token=credential))
        assert await client.fails() == Refused(UNAUTHENTICATED, reason)


async def test_an_api_key_is_shown_with_the_address_that_the_stream_came_from(ingest: Ingest) -> None:
    ingest.mint.api_keys["tmk_acme_1_s"] = ingest.mint.token(tenant=TENANT, permissions=["telemetry:write"])
    async with streaming(ingest, caller=(*ingest.caller(), (ADDRESS_HEADER, "203.0.113.7"))) as client:
        await client.open()
        await client.define(("pump-1", "temperature"))
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token="tmk_acme_1_s"))
        await client.batch(1, columns(1.0))
        await client.durable(1)
    assert ingest.mint.key_addresses == ["203.0.113.7"]


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (
            PermissionDenied("…", reason=ErrorReason.ERROR_REASON_ADDRESS_NOT_ALLOWED),
            Refused(grpc.StatusCode.PERMISSION_DENIED, "ADDRESS_NOT_ALLOWED"),
        ),
        (
            PermissionDenied("…", reason=ErrorReason.ERROR_REASON_TENANT_SUSPENDED),
            Refused(grpc.StatusCode.PERMISSION_DENIED, "TENANT_SUSPENDED"),
        ),
        (
            ResourceExhausted("…", reason=ErrorReason.ERROR_REASON_LOGIN_LIMITED, retry_after_s=7.0),
            Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LOGIN_LIMITED"),
        ),
    ],
)
async def test_a_stream_is_told_why_an_api_key_is_refused(
    ingest: Ingest, refusal: DomainError, expected: Refused
) -> None:
    ingest.mint.key_refusals["tmk_acme_1_s"] = refusal
    async with opened(ingest) as client:
        await client.send(reauthenticate=ingest_pb2.Reauthenticate(token="tmk_acme_1_s"))
        assert await client.fails() == expected


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """What streams log, however another test has configured the logs."""
    logger = CapturingLogger()
    monkeypatch.setattr("ingest_svc.stream._log", logger)
    return logger


def whys(log: CapturingLogger) -> list[str]:
    """Return why streams ended, the first one first."""
    return [call.kwargs["why"] for call in log.calls if call.args == ("stream ended",)]


async def test_a_client_that_is_gone_leaves_nothing_behind(ingest: Ingest, log: CapturingLogger) -> None:
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0))
        await client.durable(1)
    async with opened(ingest) as client:  # The same writer: not fenced by the one that is gone.
        await client.batch(2, columns(1.0))
        await client.durable(2)
        await client.close()
    assert set(whys(log)) <= {"the client is gone", "closed"}


@pytest.mark.parametrize("lost", [Break.COMMIT, Break.ANSWER])
async def test_a_database_that_breaks_throttles_and_nothing_is_lost_or_doubled(
    ingest: Ingest, auth_address: str, lost: Break
) -> None:
    sent = [columns(float(sequence)) for sequence in range(1, 11)]
    async with (
        BrokenLine(ingest.database.url("twinmesh_ingest")).open() as line,
        another(ingest, auth_address, service_database_url=line.url) as broken,
        opened(broken) as client,
    ):
        await client.batch(1, sent[0])
        await client.durable(1)
        line.breaks = lost
        for sequence in range(2, 11):
            await client.batch(sequence, sent[sequence - 1])
        throttles: list[ingest_pb2.Throttle] = []
        durable = 1
        while durable < 10:
            response = await client.read()
            if response.HasField("ack"):
                durable = response.ack.durable_through
                continue
            throttles.append(response.throttle)
            assert response.throttle.first_refused_sequence == durable + 1
            for sequence in range(durable + 1, 11):
                await client.batch(sequence, sent[sequence - 1])
        assert line.breaks is Break.NOTHING
        # What was committed though its answer was lost the store may find out by itself.
        assert throttles or lost is Break.ANSWER
        for throttle in throttles:
            assert throttle.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
            assert throttle.retry_after.ToMilliseconds() > 0
        assert await client.close() == []
    assert sorted((await ingest.samples()).values()) == [float(value) for value in range(1, 11)]
    assert await ingest.fetch_value("SELECT sum(cardinality(times)) FROM telemetry.segment") == 10


async def blocked_by(client: Client, ingest: Ingest) -> None:
    """Have Acks of over a megabyte on the way to a client that does not read: more than the line holds."""
    bad = [reading("a" * 64, time_us=NOW_US + index, temperature=1.0) for index in range(100)]
    for sequence in range(1, 121):
        await client.batch(sequence, readings=bad)

    async def committed() -> bool:
        return bool(await ingest.fetch_value("SELECT last_sequence FROM telemetry.writer_cursor") == 120)

    await until(committed)


async def test_a_client_that_dies_without_reading_leaves_nothing_behind(
    ingest: Ingest, log: CapturingLogger
) -> None:
    async with opened(ingest) as client:
        await blocked_by(client, ingest)
        assert not whys(log)
    # The end of what a cancelled call sends may be read before the cancellation, and is as Close then.
    await until(lambda: whys(log) in (["the client is gone"], ["closed"]))


async def test_a_client_that_does_not_read_is_cut_off(ingest: Ingest, log: CapturingLogger) -> None:
    async with (
        identities.channel(ingest.address, "ingest_svc", options=_SMALL_WINDOW) as channel,
        opened(replace(ingest, stub=IngestServiceStub(channel))) as deaf,
    ):
        await blocked_by(deaf, ingest)
        assert not whys(log)
        async with opened(ingest) as later:
            await until(lambda: "ERROR_REASON_FENCED" in whys(log))
            assert not deaf.call.done()
            assert await deaf.fails() == FENCED
            await later.batch(121, columns(1.0))
            await later.durable(121)
