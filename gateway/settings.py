"""What a rendered gateway depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from meshkit import plaintext
from meshkit.config import MAX_MESSAGE_BYTES, Settings
from meshkit.service_identity import ServiceIdentity

REQUESTS_PER_SECOND = 10_000
RequestsPerSecond = Annotated[
    int, Field(gt=0, description="Requests of all clients together; twice as many at once.")
]
TrustedHops = Annotated[
    int,
    Field(
        ge=0,
        le=8,
        description="Proxies before the gateway that are trusted to tell callers' addresses in"
        " x-forwarded-for; 0: its own peer is the caller.",
    ),
]
CorsOrigins = Annotated[
    str, Field(description="Origins of web pages that may call, commas between them; empty: none.")
]

TlsCertificate = Annotated[
    Path | None,
    Field(
        description="Certificate chain of the gateway's main port, a PEM file, read anew when it is replaced;"
        " without it that port is plain text."
    ),
]
TlsKey = Annotated[Path | None, Field(description="Its private key, a PEM file.")]
Plaintext = Annotated[
    bool,
    Field(
        description="Whether the main port may be plain text beyond loopback, behind a proxy that ends TLS."
    ),
]


class Upstream(StrEnum):
    """The services behind the gateway, by the name they have everywhere."""

    AUTH = "auth_svc"
    ASSET = "asset_svc"
    INGEST = "ingest_svc"
    TWIN = "twin_svc"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one process listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `host:port`, `[v6]:port`, or a URL such as `http://host:port`.

        Raises:
            ValueError: it is none of these.
        """
        authority = text.strip().rpartition("://")[2].rstrip("/")
        host, colon, port = authority.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r} is not host:port")
        return cls(host, int(port))

    @classmethod
    def parse_list(cls, text: str) -> tuple["Endpoint", ...]:
        """Read one or more endpoints with commas between them.

        Raises:
            ValueError: one is wrong, or there is none.
        """
        return tuple(cls.parse(part) for part in text.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayIdentity:
    """Who Envoy is to the services.

    Attributes:
        folder: of its certificate, as Envoy sees it (gateway/mesh_tls.py).
        trust_domain: of its certificate and the services'.
    """

    folder: Path
    trust_domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDoor:
    """A second listener, where devices show their certificates.

    Attributes:
        port: port for gRPC and JSON over TLS 1.3.
        trust: folder of its files, as Envoy sees it (gateway/devices.py).
    """

    port: int
    trust: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What clients may take before they have proved anything.

    Attributes:
        connections: open at once, to all listeners together.
        listener_connections: of these to one listener.
        headers_timeout_s: from a request's first byte to the end of its headers, and for a TLS handshake.
        request_timeout_s: from a request's headers to its end, or to the beginning of the answer.
    """

    connections: int = 16_000
    listener_connections: int = 12_000
    headers_timeout_s: int = 10
    request_timeout_s: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Everything that differs between one gateway and another.

    Attributes:
        bind: address to listen on.
        port: port for gRPC, gRPC-Web and JSON.
        tls: secret of that port's certificate, a file as Envoy sees it (gateway/tls.py); None: plain text.
        admin_port: port of Envoy's admin interface, always on loopback.
        jwks_port: port, always on loopback, where Envoy fetches auth_svc's keys from itself.
        upstreams: the processes of each service; one endpoint per process.
        identity: who Envoy is to them.
        descriptor_path: the contract's FileDescriptorSet, as this process and Envoy see it.
        devices: where devices show their certificates; None: nowhere.
        otlp: OTLP/gRPC receiver of spans; None exports none.
        trace_sample_ratio: share of traces that begin here to record, 0 to 1.
        cors_origins: origins of web pages that may call, such as `https://app.example`.
        requests_per_second: of all clients together; twice as many at once.
        trusted_hops: proxies before the gateway that are trusted to tell callers' addresses.
        access_log_path: file or device for one JSON object per request.
        max_json_body_bytes: largest JSON body; a gRPC message may have MAX_MESSAGE_BYTES.
        client_limits: connections and patience.
    """

    bind: str
    port: int
    admin_port: int
    jwks_port: int
    upstreams: Mapping[Upstream, Sequence[Endpoint]]
    identity: GatewayIdentity
    descriptor_path: Path
    tls: Path | None = None
    devices: DeviceDoor | None = None
    otlp: Endpoint | None = None
    trace_sample_ratio: float = 1.0
    cors_origins: Sequence[str] = ()
    requests_per_second: int = REQUESTS_PER_SECOND
    trusted_hops: int = 0
    access_log_path: str = "/dev/stdout"
    max_json_body_bytes: int = MAX_MESSAGE_BYTES
    client_limits: ClientLimits = ClientLimits()


def parse_origins(text: str) -> tuple[str, ...]:
    """Read any number of origins with commas between them."""
    return tuple(origin.strip() for origin in text.split(",") if origin.strip())


class GatewayEnvironment(Settings):
    """The same, as `python -m gateway.render` reads it from the environment."""

    bind: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    gateway_port: int = Field(8080, gt=0, lt=65536, description="Port for gRPC, gRPC-Web and JSON.")
    gateway_admin_port: int = Field(9901, gt=0, lt=65536, description="Envoy's admin port, on loopback.")
    gateway_jwks_port: int = Field(9902, gt=0, lt=65536, description="Port of the key fetch, on loopback.")
    identity_dir: Path = Field(
        description="Folder of the gateway's certificate and key (identity.pem) and of the CA's certificates"
        " (authorities.pem), at the path where Envoy sees it."
    )
    auth_address: str = Field(description="Processes of auth_svc, host:port with commas between them.")
    asset_address: str = Field(description="Processes of asset_svc, likewise.")
    ingest_address: str = Field(description="Processes of ingest_svc, likewise.")
    twin_address: str = Field(description="Processes of twin_svc, likewise.")
    otlp_endpoint: str = Field(
        "",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OTLP/gRPC receiver of traces, http://host:port; empty: none.",
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces to record.")
    cors_origins: CorsOrigins = ""
    gateway_requests_per_second: RequestsPerSecond = REQUESTS_PER_SECOND
    gateway_trusted_hops: TrustedHops = 0
    gateway_tls_certificate: TlsCertificate = None
    gateway_tls_key: TlsKey = None
    gateway_plaintext: Plaintext = False
    gateway_published: str = Field(
        "", description="Address at which a container's port is published, by which the gateway is reached."
    )
    device_port: int = Field(8443, gt=0, lt=65536, description="Port where devices show their certificates.")
    trust_dir: Path | None = Field(
        None,
        description="Folder of that port's files, made by `python -m twinmesh_cli.trust`; empty: no port.",
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        problem = plaintext.unpaired(
            "GATEWAY", self.gateway_tls_certificate, self.gateway_tls_key
        ) or plaintext.refusal(
            "GATEWAY",
            self.gateway_published or self.bind,
            has_tls=self.gateway_tls_certificate is not None,
            allows_plaintext=self.gateway_plaintext,
        )
        if problem:
            raise ValueError(problem)
        return self

    @field_validator("auth_address", "asset_address", "ingest_address", "twin_address")
    @classmethod
    def _lists_endpoints(cls, value: str) -> str:
        Endpoint.parse_list(value)
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        if value:
            Endpoint.parse(value)
        return value

    def settings(self, *, descriptor_path: Path, edge_secret: Path) -> GatewaySettings:
        """Return what to render.

        Args:
            descriptor_path: the contract, where Envoy will find it.
            edge_secret: the file of `gateway_tls_certificate` and its key as a secret, likewise.

        Raises:
            OSError: the identity cannot be read.
            ValueError: it is none.
        """
        name = ServiceIdentity(self.identity_dir).name
        return GatewaySettings(
            bind=self.bind,
            port=self.gateway_port,
            admin_port=self.gateway_admin_port,
            jwks_port=self.gateway_jwks_port,
            upstreams={
                Upstream.AUTH: Endpoint.parse_list(self.auth_address),
                Upstream.ASSET: Endpoint.parse_list(self.asset_address),
                Upstream.INGEST: Endpoint.parse_list(self.ingest_address),
                Upstream.TWIN: Endpoint.parse_list(self.twin_address),
            },
            identity=GatewayIdentity(folder=self.identity_dir, trust_domain=name.trust_domain),
            descriptor_path=descriptor_path,
            tls=edge_secret if self.gateway_tls_certificate else None,
            devices=DeviceDoor(port=self.device_port, trust=self.trust_dir) if self.trust_dir else None,
            otlp=Endpoint.parse(self.otlp_endpoint) if self.otlp_endpoint else None,
            trace_sample_ratio=self.trace_sample_ratio,
            cors_origins=parse_origins(self.cors_origins),
            requests_per_second=self.gateway_requests_per_second,
            trusted_hops=self.gateway_trusted_hops,
        )
