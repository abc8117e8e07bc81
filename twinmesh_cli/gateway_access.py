"""How the command line reaches a gateway: its address, and by whom its certificate is signed."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from cryptography import x509

_OPTIONS = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
_ADDRESS = re.compile(r"(?:(?P<scheme>https?)://)?(?P<target>[^/\s]+:[0-9]{1,5})/?")


@dataclass(frozen=True, slots=True)
class GatewayAccess:
    """A gateway as a client sees it.

    Attributes:
        target: host:port.
        uses_tls: whether it is spoken to over TLS.
        authorities: PEM of who signs its certificate; None: the public ones.
        server_name: name that its certificate bears, "": the target's host.
    """

    target: str
    uses_tls: bool = False
    authorities: bytes | None = None
    server_name: str = ""

    @classmethod
    def read(cls, address: str, *, authorities: Path | None = None, server_name: str = "") -> "GatewayAccess":
        """Read `host:port`, `http://host:port` or, with TLS, `https://host:port`.

        Args:
            address: one of these.
            authorities: PEM file of who signs its certificate; None: the public ones.
            server_name: name that the certificate bears, "": the address's host.

        Raises:
            ValueError: it is none of them.
            OSError: the file cannot be read.
        """
        if not (found := _ADDRESS.fullmatch(address)):
            raise ValueError(f"TWINMESH_GATEWAY: {address!r} is not host:port, or https://host:port with TLS")
        uses_tls = found["scheme"] == "https"
        pem = authorities.read_bytes() if authorities is not None and uses_tls else None
        return cls(found["target"], uses_tls, pem, server_name)

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return how gRPC knows the gateway, None without TLS."""
        return grpc.ssl_channel_credentials(self.authorities) if self.uses_tls else None

    def channel(self) -> grpc.aio.Channel:
        """Return a channel, which its caller closes."""
        credentials = self.credentials
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        named = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        return grpc.aio.secure_channel(self.target, credentials, options=[*_OPTIONS, *named])

    def http(self, *, timeout_s: float) -> httpx.AsyncClient:
        """Return a client of its JSON, which its caller closes."""
        if not self.uses_tls:
            return httpx.AsyncClient(base_url=f"http://{self.target}", timeout=timeout_s)
        pem = self.authorities.decode() if self.authorities is not None else None
        context = ssl.create_default_context(cadata=pem)
        # As gRPC does: a certificate that is trusted itself need not be its own authority.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        hooks = {"request": [self._name_server] if self.server_name else []}
        base = f"https://{self.target}"
        return httpx.AsyncClient(base_url=base, verify=context, timeout=timeout_s, event_hooks=hooks)

    async def _name_server(self, request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = self.server_name


def first_name(certificate: Path) -> str:
    """Return the name that a certificate bears before all others, "" when it bears none.

    Args:
        certificate: PEM file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no certificate.
    """
    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return next((str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)), "")
