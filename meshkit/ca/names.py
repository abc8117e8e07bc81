"""Names in certificates: SPIFFE ids (https://spiffe.io/docs/latest/spiffe-specs/spiffe-id)."""

import re
from dataclasses import dataclass
from typing import Self

TRUST_DOMAIN_PATTERN = r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?"
_SERVICE = re.compile(rf"spiffe://(?P<domain>{TRUST_DOMAIN_PATTERN})/service/(?P<name>[a-z0-9_-]{{1,64}})")
_DEVICE = re.compile(
    rf"spiffe://(?P<domain>{TRUST_DOMAIN_PATTERN})/tenant/(?P<tenant>[a-z0-9-]{{1,32}})"
    r"/device/(?P<device>[a-z0-9-]{1,64})"
)


@dataclass(frozen=True, slots=True)
class DeviceName:
    """A device, in the whole of an installation.

    Attributes:
        trust_domain: the installation's.
        tenant: whose device it is.
        device_id: its id.
    """

    trust_domain: str
    tenant: str
    device_id: str

    @property
    def uri(self) -> str:
        """Return the SPIFFE id."""
        return f"{domain_uri(self.trust_domain)}/tenant/{self.tenant}/device/{self.device_id}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read `uri`.

        Raises:
            ValueError: it names no device.
        """
        match = _DEVICE.fullmatch(uri)
        if match is None:
            raise ValueError(f"{uri!r} names no device")
        return cls(match["domain"], match["tenant"], match["device"])


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A service, or another part of the mesh that calls services.

    Attributes:
        trust_domain: the installation's.
        name: such as `asset_svc`; all processes of a service share it.
    """

    trust_domain: str
    name: str

    @property
    def uri(self) -> str:
        """Return the SPIFFE id."""
        return f"{domain_uri(self.trust_domain)}/service/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read `uri`.

        Raises:
            ValueError: it names no service.
        """
        match = _SERVICE.fullmatch(uri)
        if match is None:
            raise ValueError(f"{uri!r} names no service")
        return cls(match["domain"], match["name"])


def domain_uri(trust_domain: str) -> str:
    """Return the SPIFFE id of a trust domain, which its CA has."""
    return f"spiffe://{trust_domain}"
