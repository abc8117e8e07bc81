"""Devices for a bench, made through the gateway as their owner would."""

from collections.abc import Sequence

import httpx

from meshkit.testing.mesh import Mesh

_PER_REQUEST = 1_000
# All parts of the quality are judged, and a range that refuses is looked at.
_RULES = {
    "minimum": -1e9,
    "maximum": 1e9,
    "rangePolicy": "RANGE_POLICY_REFUSE",
    "interval": "1s",
    "maxRate": 1e9,
}


def make_fleet(mesh: Mesh, token: str, *, prefix: str, devices: int, metrics: int) -> list[tuple[str, str]]:
    """Make devices of a type of their own, and return (device, metric) of their series.

    Args:
        mesh: where.
        token: of somebody who may.
        prefix: begins their ids, and is their type's.
        devices: how many.
        metrics: how many each has, all doubles.
    """
    names = [f"m{number}" for number in range(metrics)]
    ids = [f"{prefix}-{number}" for number in range(devices)]
    with httpx.Client(
        base_url=mesh.url, headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False
    ) as client:
        defined = [{"name": name, "kind": "VALUE_KIND_DOUBLE", **_RULES} for name in names]
        client.post("/v1/deviceTypes", json={"id": prefix, "metrics": defined}).raise_for_status()
        for first in range(0, devices, _PER_REQUEST):
            _make(client, ids[first : first + _PER_REQUEST], prefix)
    return [(device, name) for device in ids for name in names]


def _make(client: httpx.Client, ids: Sequence[str], device_type: str) -> None:
    devices = [{"id": each, "deviceTypeId": device_type} for each in ids]
    client.post("/v1/devices:batchCreate", json={"devices": devices}).raise_for_status()
