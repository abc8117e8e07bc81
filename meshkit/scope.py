"""Which devices a caller is bound to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

_DEVICES, _GATEWAYS = "device_ids", "gateway_ids"


@dataclass(frozen=True, slots=True)
class Scope:
    """Devices that a caller is bound to; whoever is bound to none has no scope at all.

    Attributes:
        device_ids: single devices.
        gateway_ids: gateways, each with the children that it has at the time.
    """

    device_ids: frozenset[str] = frozenset()
    gateway_ids: frozenset[str] = frozenset()

    def holds(self, device_id: str, parent_id: str) -> bool:
        """Say whether a device is one of them.

        Args:
            device_id: the device.
            parent_id: its gateway, "" for none.
        """
        return device_id in self.device_ids or device_id in self.gateway_ids or parent_id in self.gateway_ids

    def includes(self, other: "Scope") -> bool:
        """Say whether all devices of another scope are in this one, whatever children gateways have."""
        return (
            other.gateway_ids <= self.gateway_ids and other.device_ids <= self.device_ids | self.gateway_ids
        )

    @classmethod
    def of(cls, device_ids: Iterable[str], gateway_ids: Iterable[str]) -> Self | None:
        """Return the scope of these, None when there are neither."""
        scope = cls(frozenset(device_ids), frozenset(gateway_ids))
        return scope if scope.device_ids or scope.gateway_ids else None

    @property
    def claims(self) -> dict[str, list[str]]:
        """Return it as claims of a token."""
        return {_DEVICES: sorted(self.device_ids), _GATEWAYS: sorted(self.gateway_ids)}

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any]) -> Self | None:
        """Return what a token's claims bind its bearer to, None: to no devices."""
        if not claims.keys() & {_DEVICES, _GATEWAYS}:
            return None
        return cls(frozenset(claims.get(_DEVICES, ())), frozenset(claims.get(_GATEWAYS, ())))
