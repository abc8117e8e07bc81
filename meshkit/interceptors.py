"""What happens around every rpc: caller, identity, permission, validation, deadline, errors, audit.

One interceptor does all of it, in this order, so that an rpc costs one wrapper.
Handlers of streams must be async generators. A handler may answer with a message or with its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from meshkit import policy, status
from meshkit.audit import AuditedCall, AuditTrail, is_recorded
from meshkit.audit_targets import TargetReader
from meshkit.caller_address import caller_address
from meshkit.callers import Callers, bind_caller, callers_of, require_caller, service_principal
from meshkit.errors import DeadlineExceeded, DomainError, InvalidArgument
from meshkit.identity import Principal, TokenVerifier, bind_principal
from meshkit.open_calls import OpenCall, OpenCalls
from meshkit.request_memory import RequestMemory
from meshkit.service_identity import ServiceIdentity
from meshkit.telemetry import current_trace_id, join_trace
from meshkit.validation import validate
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_BEARER = "bearer "
_UNARY_DEADLINE_S = 30.0
_UNCOUNTED_BYTES = 8 * 1024
_LARGE_BYTES = 64 * 1024
# Stands in for a message whose bytes are none, until its sender is known and can be told.
_UNREADABLE = object()

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Serves every rpc of a service by the rules that its contract carries.

    Args:
        identity: knows services by their certificates.
        callers: which of them may call which rpcs; all may ask for health.
        verifier: proves bearer tokens.
        open_calls: ends streams with the credentials that opened them.
        memory: for requests that are worked on.
        audit: takes the account of each call.
    """

    def __init__(
        self,
        *,
        identity: ServiceIdentity,
        callers: Callers,
        verifier: TokenVerifier,
        open_calls: OpenCalls,
        memory: RequestMemory,
        audit: AuditTrail,
    ) -> None:
        self._identity = identity
        self._callers = callers
        self._verifier = verifier
        self._open_calls = open_calls
        self._memory = memory
        self._audit = audit
        self._large = asyncio.Lock()
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler with everything around it."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # grpc answers UNIMPLEMENTED.
            # The health servicer writes to the context, which generators do not allow.
            wrap = self._wrap_health if method.startswith(policy.HEALTH) else self._wrap
            wrapped = self._wrapped[method] = wrap(handler, method)
        return wrapped

    def _wrap(self, handler: Handler, method: str) -> Handler:
        call = _Call(
            method=method,
            identity=self._identity,
            allowed=callers_of(method, self._callers),
            verifier=self._verifier,
            open_calls=self._open_calls,
            memory=self._memory,
            large=self._large,
            decode=_decoder(handler.request_deserializer),
            audit=self._audit,
        )
        # One request is read once it is known who sent it, those of a stream as they come.
        encoded: dict[str, Any] = {"response_serializer": _encoder(handler.response_serializer)}
        decoded: dict[str, Any] = {**encoded, "request_deserializer": call.decode}
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(call.unary_unary(handler.unary_unary), **encoded)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(call.unary_stream(handler.unary_stream), **encoded)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(call.stream_unary(handler.stream_unary), **decoded)
        return grpc.stream_stream_rpc_method_handler(call.stream_stream(handler.stream_stream), **decoded)

    def _wrap_health(self, handler: Handler, method: str) -> Handler:
        """Let every service ask, and nobody else."""
        answer: Any = handler.unary_unary or handler.unary_stream

        async def serve(request: Message, context: Context) -> Any:
            try:
                self._identity.caller(context)
            except DomainError as error:
                await _refuse(context, error, method=method)
            return await answer(request, context)

        made = (
            grpc.unary_unary_rpc_method_handler
            if handler.unary_unary is not None
            else grpc.unary_stream_rpc_method_handler
        )
        wrapped: Handler = made(serve, handler.request_deserializer, handler.response_serializer)
        return wrapped


class _Call:
    """Wraps the handler of one method, whichever of the four forms it has."""

    def __init__(
        self,
        *,
        method: str,
        identity: ServiceIdentity,
        allowed: Collection[str],
        verifier: TokenVerifier,
        open_calls: OpenCalls,
        memory: RequestMemory,
        large: asyncio.Lock,
        decode: Callable[[bytes], Any],
        audit: AuditTrail,
    ) -> None:
        self._method = method
        self._identity = identity
        self._allowed = allowed
        self._permission = policy.permission_of(method)
        self._is_for_bound = self._permission == policy.PUBLIC or policy.keeps_to_scope(method)
        self._verifier = verifier
        self._open_calls = open_calls
        self._memory = memory
        self._large = large
        self.decode = decode
        self._endings: set[asyncio.Task[None]] = set()
        self._targets = TargetReader(method)
        self._audited = partial(audit.call, method, recorded=is_recorded(method))

    def unary_unary(self, inner: Any) -> Any:
        async def serve(payload: bytes, context: Context) -> Any:
            with self._audited(context) as call:
                try:
                    request = await self._received(payload, context, call)
                    if context.time_remaining() is None:
                        async with asyncio.timeout(_UNARY_DEADLINE_S):
                            response = await inner(request, context)
                    else:
                        response = await inner(request, context)
                    if not call.targets:
                        call.targets = self._targets.answered(response)
                    return response
                except Exception as error:
                    await self._end(context, error)

        return serve

    def unary_stream(self, inner: Any) -> Any:
        async def serve(payload: bytes, context: Context) -> AsyncIterator[Message]:
            with self._audited(context) as call:
                try:
                    request = await self._received(payload, context, call)
                    await self._hold(call, context)
                    async with aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            call.sent += 1
                            yield response
                except Exception as error:
                    await self._end(context, error)

        return serve

    def stream_unary(self, inner: Any) -> Any:
        async def serve(requests: AsyncIterator[Message], context: Context) -> Any:
            with self._audited(context) as call:
                try:
                    await self._admit(context, call)
                    await self._hold(call, context)
                    return await inner(_validated(requests, call), context)
                except Exception as error:
                    await self._end(context, error)

        return serve

    def stream_stream(self, inner: Any) -> Any:
        async def serve(requests: AsyncIterator[Message], context: Context) -> AsyncIterator[Message]:
            with self._audited(context) as call:
                try:
                    await self._admit(context, call)
                    await self._hold(call, context)
                    async with aclosing(inner(_validated(requests, call), context)) as responses:
                        async for response in responses:
                            call.sent += 1
                            yield response
                except Exception as error:
                    await self._end(context, error)

        return serve

    async def _received(self, payload: bytes, context: Context, call: AuditedCall) -> Any:
        """Return the one message of a request, for which there is room until the call is over."""
        try:
            await self._admit(context, call)
            self._make_room(len(payload), context, call)
        except (Exception, asyncio.CancelledError):
            # What was asked for is recorded also when it is refused or given up, but not at any price.
            if len(payload) <= _LARGE_BYTES:
                self._read(payload, call)
            raise
        if len(payload) <= _LARGE_BYTES:
            return self._checked(payload, call)
        # Megabytes take tens of milliseconds. Many at once would hold up all others, and the gateway takes a
        # service for gone that does not answer for seconds: between any two the process does what else waits.
        async with self._large:
            await asyncio.sleep(0)
            return self._checked(payload, call)

    def _make_room(self, size: int, context: Context, call: AuditedCall) -> None:
        if call.principal is not None:
            whose = call.principal.tenant or f"/{call.principal.subject}"
        elif size <= _UNCOUNTED_BYTES:
            # Anybody could fill the share of log-ins and of checks of keys, and keep all others out: how many
            # there are is bounded by the gateway.
            return
        else:
            whose = self._method
        _when_done(context, self._memory.take(whose, size))

    def _checked(self, payload: bytes, call: AuditedCall) -> Any:
        request = self._read(payload, call)
        _check(request)
        return request

    def _read(self, payload: bytes, call: AuditedCall) -> Any:
        """Return the message, and note what it is about."""
        request = self.decode(payload)
        if request is not _UNREADABLE:
            call.targets = self._targets.asked(request)
        return request

    async def _admit(self, context: Context, call: AuditedCall) -> None:
        """Let the caller in, or raise why not."""
        metadata = context.invocation_metadata() or ()
        join_trace(metadata)
        call.address = caller_address(context)
        caller = self._identity.caller(context)
        require_caller(caller, self._allowed, method=self._method)
        bind_caller(caller)
        call.principal = await self._identify(metadata, caller)
        policy.require(self._permission, call.principal, method=self._method)
        if not self._is_for_bound:
            policy.require_unbound(call.principal, method=self._method)

    async def _hold(self, call: AuditedCall, context: Context) -> None:
        """Count a stream, and have it end with its caller's credential; public rpcs let in nobody as well."""
        if call.principal is None:
            return
        handling = asyncio.current_task()
        assert handling is not None  # noqa: S101 - gRPC handles each call in a task of its own

        def cut_off(error: DomainError) -> None:
            # The task is cancelled, the client is told why.
            call.code = status.code_of(error).value[0]
            # A task that waits for a client to read does not come to its end by itself.
            handling.cancel()
            ending = asyncio.create_task(_cut_off(context, error), name="cut-off")
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

        open_call = OpenCall(call.principal, address=call.address, cut_off=cut_off, renewed=call.renew)
        await self._open_calls.add(open_call)
        _when_done(context, lambda: self._open_calls.remove(open_call))

    async def _identify(self, metadata: Iterable[tuple[str, str | bytes]], caller: str) -> Principal | None:
        """Return the user whose token came along, else the service that calls for itself."""
        if self._permission == policy.PUBLIC:
            return None
        for name, value in metadata:
            if name == "authorization" and isinstance(value, str):
                if value[: len(_BEARER)].lower() != _BEARER:
                    return None
                principal = await self._verifier.verify(value[len(_BEARER) :])
                break
        else:
            found = service_principal(caller)
            if found is None:
                return None
            principal = found
        bind_principal(principal)
        return principal

    async def _end(self, context: Context, error: Exception) -> NoReturn:
        """End the call with the status of what was raised."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        known = _domain_error(error)
        if known is None:
            _log.error("rpc failed", method=self._method, exc_info=error)
            answer = status.internal_status(current_trace_id())
        else:
            await _refuse(context, known, method=self._method)
        await context.abort_with_status(rpc_status.to_status(answer))
        raise AssertionError("unreachable: aborting raises")


def _when_done(context: Context, call: Callable[[], object]) -> None:
    """Call something when an rpc is over; one that ends while it writes never comes back to its generator."""

    def is_over(_: Context) -> None:
        call()

    context.add_done_callback(is_over)  # type: ignore[arg-type] # grpc-stubs take another type for it.


async def _refuse(context: Context, error: DomainError, *, method: str) -> NoReturn:
    _log.info(
        "rpc refused",
        method=method,
        code=status.code_of(error).name,
        reason=status.reason_name(error.reason),
        detail=error.message,
    )
    await context.abort_with_status(rpc_status.to_status(status.to_status(error)))
    raise AssertionError("unreachable: aborting raises")


async def _cut_off(context: Context, error: DomainError) -> None:
    """End a call, whose client finds the status behind what was written last."""
    with suppress(grpc.aio.BaseError):
        await context.abort_with_status(rpc_status.to_status(status.to_status(error)))


async def _validated(requests: AsyncIterator[Message], call: AuditedCall) -> AsyncIterator[Message]:
    async for request in requests:
        call.received += 1
        _check(request)
        yield request


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], object]:
    """Keep grpc from answering UNKNOWN, with the exception's text, to bytes that are no message."""

    def decoded(payload: bytes) -> object:
        try:
            return decode(payload) if decode is not None else payload
        except DecodeError:
            return _UNREADABLE

    return decoded


def _encoder(encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """Let a handler answer with bytes that are written already, as those are that many callers are told."""

    def encoded(response: Any) -> bytes:
        return response if encode is None or isinstance(response, bytes) else encode(response)

    return encoded


def _check(request: Message) -> None:
    if request is _UNREADABLE:
        raise InvalidArgument(
            "the bytes are not a message of this rpc; is the client generated from the same contract?",
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
        )
    validate(request)


def _domain_error(error: Exception) -> DomainError | None:
    if isinstance(error, DomainError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(
            "the request took too long", reason=ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
        )
    return status.from_driver_error(error)
