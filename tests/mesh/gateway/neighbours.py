"""Stand-ins for the services behind the gateway: real gRPC servers that remember what reached them."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from envoy_api import external_auth_pb2, external_auth_pb2_grpc
from meshkit import errors, status
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint
from twinmesh.asset.v1 import (
    asset_service_pb2,
    asset_service_pb2_grpc,
    device_service_pb2,
    device_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
)
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.mesh.v1 import health_service_pb2, health_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc

TENANT = "acme"
_COLLECTOR = "collector"
GOOD_KEY = "tmk_acme_1_good"


class Watch:
    """A watch in the hands of a test, which says what it tells and how it ends.

    Attributes:
        over: set when its caller has left, or it has ended.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.over = threading.Event()
        self._said: queue.SimpleQueue[twin_service_pb2.WatchTwinsResponse | errors.DomainError | None] = (
            queue.SimpleQueue()
        )
        self._context = context
        if not context.add_callback(self._leave):
            self._leave()

    def tell(self, **event: Any) -> None:
        """Tell one event, by its name in the contract."""
        self._said.put(twin_service_pb2.WatchTwinsResponse(**event))

    def end(self, error: errors.DomainError | None = None) -> None:
        """End with a status: OK, or an error's."""
        self._said.put(error)

    def run(self) -> Iterator[twin_service_pb2.WatchTwinsResponse]:
        """Yield what the test tells, until it ends or the caller leaves."""
        while isinstance(said := self._said.get(), twin_service_pb2.WatchTwinsResponse):
            yield said
        if said is not None:
            _abort(self._context, said)

    def _leave(self) -> None:
        self.over.set()
        self._said.put(None)


Watches = queue.SimpleQueue[Watch]


@dataclass
class Arrivals:
    """What reached the neighbours, newest last."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    spans_changed: threading.Condition = field(default_factory=threading.Condition)
    watches: Watches = field(default_factory=queue.SimpleQueue)

    def note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
        self.deadlines.append(context.time_remaining())

    def wait_for_trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace, once there are any."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        with self.spans_changed:
            assert self.spans_changed.wait_for(found, timeout=20)
            return found()


def _abort(context: grpc.ServicerContext, error: errors.DomainError) -> None:
    context.abort_with_status(rpc_status.to_status(status.to_status(error)))


def _header(name: str, value: str) -> external_auth_pb2.HeaderValueOption:
    return external_auth_pb2.HeaderValueOption(
        header=external_auth_pb2.HeaderValue(key=name, value=value),
        append_action=external_auth_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, arrivals: Arrivals, mint: TokenMint) -> None:
        self._arrivals = arrivals
        self._mint = mint

    def Login(self, request: Any, context: Any) -> session_service_pb2.LoginResponse:
        self._arrivals.note(request, context)
        return session_service_pb2.LoginResponse(access_token="token", token_type="Bearer")

    def GetMe(self, request: Any, context: Any) -> session_service_pb2.GetMeResponse:
        self._arrivals.note(request, context)
        return session_service_pb2.GetMeResponse(tenant=TENANT)

    def GetJwks(self, request: Any, context: Any) -> session_service_pb2.GetJwksResponse:
        return session_service_pb2.GetJwksResponse(keys=[session_service_pb2.Jwk(**self._mint.jwk())])


class KeyChecks(external_auth_pb2_grpc.AuthorizationServicer):
    def __init__(self, arrivals: Arrivals, mint: TokenMint) -> None:
        self._arrivals = arrivals
        self._mint = mint

    def Check(self, request: Any, context: Any) -> external_auth_pb2.CheckResponse:
        self._arrivals.note(request, context)
        if request.attributes.request.http.headers.get("authorization") != f"Bearer {GOOD_KEY}":
            return external_auth_pb2.CheckResponse(
                status=status_pb2.Status(code=code_pb2.UNAUTHENTICATED),
                denied_response=external_auth_pb2.DeniedHttpResponse(
                    status=external_auth_pb2.HttpStatus(code=401),
                    headers=[_header("content-type", "application/json")],
                    body="{}",
                ),
            )
        token = self._mint.token(tenant=TENANT, permissions=[], subject="key-1", kind="api_key")
        option = _header("authorization", f"Bearer {token}")
        return external_auth_pb2.CheckResponse(
            status=status_pb2.Status(), ok_response=external_auth_pb2.OkHttpResponse(headers=[option])
        )


class Devices(device_service_pb2_grpc.DeviceServiceServicer):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def GetDevice(self, request: Any, context: Any) -> device_service_pb2.Device:
        self._arrivals.note(request, context)
        if request.id == "absent":
            _abort(context, errors.not_found("device", request.id))
        if request.id == "wrong":
            _abort(context, errors.invalid_field("id", "is wrong"))
        if request.id == "away":
            _abort(context, errors.dependency_unavailable("postgresql"))
        return device_service_pb2.Device(id=request.id)

    def ListDevices(self, request: Any, context: Any) -> device_service_pb2.ListDevicesResponse:
        self._arrivals.note(request, context)
        return device_service_pb2.ListDevicesResponse()

    def UpdateDevice(self, request: Any, context: Any) -> device_service_pb2.Device:
        self._arrivals.note(request, context)
        return device_service_pb2.Device(id=request.device.id)

    def DeleteDevice(self, request: Any, context: Any) -> device_service_pb2.DeleteDeviceResponse:
        self._arrivals.note(request, context)
        return device_service_pb2.DeleteDeviceResponse()

    def BatchCreateDevices(self, request: Any, context: Any) -> device_service_pb2.BatchCreateDevicesResponse:
        self._arrivals.note(request, context)
        return device_service_pb2.BatchCreateDevicesResponse(devices=request.devices)


class SlowAssets(asset_service_pb2_grpc.AssetServiceServicer):
    """Answers only when the caller has given up."""

    def GetAsset(self, request: Any, context: Any) -> asset_service_pb2.Asset:
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(timeout=30)
        return asset_service_pb2.Asset()


class Profiles(profile_service_pb2_grpc.ProfileServiceServicer):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def ListProfiles(self, request: Any, context: Any) -> profile_service_pb2.ListProfilesResponse:
        self._arrivals.note(request, context)
        return profile_service_pb2.ListProfilesResponse()


class MeshHealth(health_service_pb2_grpc.HealthServiceServicer):
    def GetLiveness(self, request: Any, context: Any) -> health_service_pb2.GetLivenessResponse:
        return health_service_pb2.GetLivenessResponse(status="ok")

    def GetReadiness(self, request: Any, context: Any) -> health_service_pb2.GetReadinessResponse:
        _abort(context, errors.dependency_unavailable("nats"))
        raise AssertionError("abort raises")


class Ingest(ingest_service_pb2_grpc.IngestServiceServicer):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def IngestTelemetry(self, request: Any, context: Any) -> ingest_service_pb2.IngestTelemetryResponse:
        self._arrivals.note(request, context)
        return ingest_service_pb2.IngestTelemetryResponse(stored_samples=len(request.readings))

    def StreamTelemetry(
        self, request_iterator: Iterator[Any], context: Any
    ) -> Iterator[ingest_service_pb2.StreamTelemetryResponse]:
        for request in request_iterator:
            self._arrivals.note(request, context)
            ack = ingest_service_pb2.Ack(durable_through=request.batch.sequence)
            yield ingest_service_pb2.StreamTelemetryResponse(ack=ack)


class Twins(twin_service_pb2_grpc.TwinServiceServicer):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def QueryHistory(self, request: Any, context: Any) -> twin_service_pb2.QueryHistoryResponse:
        self._arrivals.note(request, context)
        return twin_service_pb2.QueryHistoryResponse()

    def WatchTwins(self, request: Any, context: Any) -> Iterator[twin_service_pb2.WatchTwinsResponse]:
        """Begins with a snapshot of the devices asked for, and goes on as the test says."""
        self._arrivals.note(request, context)
        if "wrong" in request.ids:
            _abort(context, errors.invalid_field("resume_token", "is none of ours"))
        watch = Watch(context)
        self._arrivals.watches.put(watch)
        twins = [twin_service_pb2.Twin(id=each) for each in request.ids]
        yield twin_service_pb2.WatchTwinsResponse(snapshot=twin_service_pb2.Snapshot(twins=twins))
        yield from watch.run()


class Spans(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._arrivals.spans_changed:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._arrivals.spans.extend(scope.spans)
            self._arrivals.spans_changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def _serving(
    service: str,
    port: int,
    *add: Callable[[grpc.Server], None],
    health_servicer: health.HealthServicer | None = None,
) -> Iterator[int]:
    """A server with grpc.health.v1, SERVING at first; yields its port. The collector is no service."""
    with ThreadPoolExecutor(max_workers=8) as threads:
        options = [("grpc.so_reuseport", 0), ("grpc.max_metadata_size", 32 * 1024)]
        server = grpc.server(threads, options=options)
        health_servicer = health_servicer or health.HealthServicer()
        health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        for each in add:
            each(server)
        address = f"127.0.0.1:{port}"
        if service == _COLLECTOR:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, identities.identity(service).server_credentials())
        server.start()
        try:
            yield bound
        finally:
            server.stop(0).wait()


def auth_svc(arrivals: Arrivals, mint: TokenMint, *, port: int = 0) -> AbstractContextManager[int]:
    return _serving(
        "auth_svc",
        port,
        lambda server: session_service_pb2_grpc.add_SessionServiceServicer_to_server(
            Sessions(arrivals, mint), server
        ),
        lambda server: external_auth_pb2_grpc.add_AuthorizationServicer_to_server(
            KeyChecks(arrivals, mint), server
        ),
        lambda server: health_service_pb2_grpc.add_HealthServiceServicer_to_server(MeshHealth(), server),
    )


def asset_svc(arrivals: Arrivals, *, port: int = 0) -> AbstractContextManager[int]:
    names = ("twinmesh.asset.v1.DeviceService", reflection.SERVICE_NAME)
    return _serving(
        "asset_svc",
        port,
        lambda server: device_service_pb2_grpc.add_DeviceServiceServicer_to_server(Devices(arrivals), server),
        lambda server: asset_service_pb2_grpc.add_AssetServiceServicer_to_server(SlowAssets(), server),
        lambda server: profile_service_pb2_grpc.add_ProfileServiceServicer_to_server(
            Profiles(arrivals), server
        ),
        lambda server: reflection.enable_server_reflection(names, server),
    )


def ingest_svc(
    arrivals: Arrivals, *, port: int = 0, health_servicer: health.HealthServicer | None = None
) -> AbstractContextManager[int]:
    return _serving(
        "ingest_svc",
        port,
        lambda server: ingest_service_pb2_grpc.add_IngestServiceServicer_to_server(Ingest(arrivals), server),
        health_servicer=health_servicer,
    )


def twin_svc(arrivals: Arrivals) -> AbstractContextManager[int]:
    return _serving(
        "twin_svc",
        0,
        lambda server: twin_service_pb2_grpc.add_TwinServiceServicer_to_server(Twins(arrivals), server),
    )


def collector(arrivals: Arrivals) -> AbstractContextManager[int]:
    return _serving(
        _COLLECTOR,
        0,
        lambda server: trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Spans(arrivals), server),
    )
