"""Staying connected: one stream after the other, and how long to wait in between."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh_client.errors import Disconnected, Gap, TakenOver, from_rpc_error
from twinmesh_client.outbox import Outbox
from twinmesh_client.reasons import reason_name
from twinmesh_client.stats import Counters
from twinmesh_client.stream import Stream
from twinmesh_client.tokens import TokenSource
from twinmesh_client.waiting import Changes

_log = logging.getLogger("twinmesh_client")
_STEADY_S = 10.0  # A stream that lived for so long makes the next failure the first one.
_BACK_OFF = wait_random_exponential(multiplier=0.5, min=0.1, max=30.0)
_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # While a ping of grpc's own is under way, which measures the line, no other one is sent, and that one
    # would be waited for 60 s.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Each attempt is a connection of its own; the waiting between them is done here.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


class Connection:
    """Streams what the outbox holds to the server, over one connection after the other.

    Args:
        name: of the gateway, for the log.
        target: host:port of the mesh's gateway.
        credentials: for TLS; None for plain text.
        server_name: that the server's certificate bears, "": the target's host.
        tokens: asked for one at each connect.
        outbox: what is to be sent.
        definitions: of all series, by alias.
        changes: of the outbox.
        counters: of the client.
        on_result: called with each result of a batch of which something was refused.
        leaving: tells whether the client leaves as soon as everything is durable.
    """

    def __init__(
        self,
        *,
        name: str,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        server_name: str,
        tokens: TokenSource,
        outbox: Outbox,
        definitions: Sequence[ingest_pb2.SeriesDef],
        changes: Changes,
        counters: Counters,
        on_result: Callable[[ingest_pb2.BatchResult], None],
        leaving: Callable[[], bool],
    ) -> None:
        self._name = name
        self._target = target
        self._credentials = credentials
        self._server_name = server_name
        self._tokens = tokens
        self._outbox = outbox
        self._definitions = definitions
        self._changes = changes
        self._counters = counters
        self._on_result = on_result
        self._leaving = leaving
        self._session_id = secrets.token_hex(16)
        self._has_opened = False
        self._met_gap = False

    async def stay_connected(self) -> None:
        """Stream, again and again, until the client is left and all is durable.

        Raises:
            GatewayError: the server refuses the stream for good, there is no way to a token, or the
                spool cannot be read.
        """
        while not (self._leaving() and self._outbox.is_acknowledged):
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Disconnected), wait=_waiting_s, before_sleep=self._log_wait
            ):
                with attempt:
                    await self._stream_once()

    async def _stream_once(self) -> None:
        token = await self._tokens.ask()
        started = time.monotonic()
        async with _channel(self._target, self._credentials, self._server_name) as channel:
            failure, may_follow = await self._stream_over(channel, token)
        was_steady = may_follow or time.monotonic() - started > _STEADY_S
        if failure is None and not was_steady and not self._leaving():
            failure = Disconnected("the server ended the stream at once")
        if isinstance(failure, Disconnected):
            failure.was_steady = was_steady
        if failure is not None:
            raise failure

    async def _stream_over(self, channel: grpc.aio.Channel, token: str) -> tuple[Exception | None, bool]:
        """Return why a stream failed, and whether the next one may follow at once.

        It may when something became durable over this one, or the client itself ended it to open anew.
        """
        call = ingest_grpc.IngestServiceStub(channel).StreamTelemetry(
            metadata=(("authorization", f"Bearer {token}"),)
        )
        stream = Stream(
            call,
            session_id=self._session_id,
            resume=self._has_opened,
            outbox=self._outbox,
            definitions=self._definitions,
            changes=self._changes,
            on_opened=self._count_opened,
            on_result=self._on_result,
            on_throttle=self._count_throttle,
            leaving=self._leaving,
        )
        failure: Exception | None = None
        resumes = self._has_opened
        try:
            await stream.run()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(
                error,
                renews_token=self._tokens.renews,
                was_open=stream.is_open,
                is_resuming=resumes and not stream.is_open,
                met_gap=self._met_gap and not stream.progressed,
            )
            # What was taken over had been opened, though Opened may have been lost.
            self._has_opened |= isinstance(failure, TakenOver)
        except Disconnected as error:
            # Its frames would hold the call, and so the connection, while the next one is waited for.
            failure = error.with_traceback(None)
        finally:
            self._met_gap = isinstance(failure, Gap) or (self._met_gap and not stream.progressed)
            self._counters.connected = False
            call.cancel()
        if stream.is_sent_away:
            _log.info("%s: the server asked to move to another stream", self._name)
        return failure, stream.progressed or stream.reopens

    def _count_opened(self) -> None:
        self._has_opened = True
        self._counters.connected = True
        self._counters.streams += 1
        _log.info("%s: connected to %s", self._name, self._target)
        self._changes.notify()

    def _count_throttle(self, throttle: ingest_pb2.Throttle) -> None:
        self._counters.throttles += 1
        _log.info("%s: throttled: %s", self._name, throttle.message or reason_name(throttle.reason))

    def _log_wait(self, state: RetryCallState) -> None:
        _log.warning(
            "%s: %s; trying again in %.1f s",
            self._name, state.outcome and state.outcome.exception(), state.upcoming_sleep,
        )  # fmt: skip


def _channel(target: str, credentials: grpc.ChannelCredentials | None, server_name: str) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    named = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.aio.secure_channel(target, credentials, options=[*_CHANNEL_OPTIONS, *named])


def _waiting_s(state: RetryCallState) -> float:
    """Return how long to wait after a failure: more each time, at random, after what the server asked."""
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, Disconnected):
        return 0.0
    if error.was_steady:
        state.attempt_number = 1
    return error.retry_after_s + _BACK_OFF(state)
