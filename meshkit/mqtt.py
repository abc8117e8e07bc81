"""What the services agree on about devices that speak MQTT with NATS."""

import re
from dataclasses import dataclass
from typing import Self

from meshkit.identity import Principal, PrincipalKind

# Accounts of NATS: what is in one, nobody of another sees.
DEVICES_ACCOUNT = "DEVICES"
# Subject of the topic devices/<device id>/telemetry.
TELEMETRY_SUBJECT = "devices.*.telemetry"
# NATS keeps messages of QoS 1 here, for those who have a consumer.
STREAM = "$MQTT_msgs"
CONSUMER = "ingest"
_PERMISSIONS = frozenset({"telemetry:write"})
_LOGIN = re.compile(
    "(?P<tenant>[a-z0-9-]+)/(?P<certificate>certificate:)?(?P<credential>[a-z0-9]+(?:-[0-9]+)?)/"
    "(?P<device>[a-z0-9-]*)(?:@(?P<as_of>[0-9]{1,19}))?"
)


def telemetry_subject(device_id: str) -> str:
    """Return the subject that a device publishes to."""
    return f"devices.{device_id}.telemetry"


def key_of(credential_id: str) -> str:
    """Return the id of the API key whose secret a credential is: what stands before the first hyphen."""
    return credential_id.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Login:
    """Who is behind an MQTT connection, as NATS knows it.

    Attributes:
        tenant: of the credential.
        credential_id: of the API key's secret, or the certificate's.
        device_id: the device that logged in, "" when a key did for its tenant's devices.
        by_certificate: it has shown a certificate, which is its device's.
        devices_as_of: when a key did for its tenant's devices, a number in asset_svc's list of deleted ones:
            which devices there are was asked after those up to it were gone.
    """

    tenant: str
    credential_id: str
    device_id: str
    by_certificate: bool = False
    devices_as_of: int = 0

    @property
    def text(self) -> str:
        """Return it as the name of a user of NATS."""
        kind = "certificate:" if self.by_certificate else ""
        devices = self.device_id or f"@{self.devices_as_of}"
        return f"{self.tenant}/{kind}{self.credential_id}/{devices}"

    @property
    def as_principal(self) -> Principal:
        """Return the principal, who may publish telemetry and nothing else."""
        kind, subject = PrincipalKind.API_KEY, key_of(self.credential_id)
        if self.by_certificate:
            kind, subject = PrincipalKind.DEVICE, self.device_id
        return Principal(self.tenant, subject, kind, _PERMISSIONS, credential_id=self.credential_id)

    @property
    def principal(self) -> str:
        """Return the name of the principal, as meshkit.identity gives it."""
        return self.as_principal.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`.

        Raises:
            ValueError: it is none.
        """
        match = _LOGIN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no log-in of a device")
        by_certificate = match["certificate"] is not None
        as_of = int(match["as_of"] or 0)
        return cls(match["tenant"], match["credential"], match["device"], by_certificate, as_of)
