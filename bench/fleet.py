"""Devices for a bench, made through the gateway as their owner would."""

from collections.abc import Sequence

import httpx

from meshkit.testing.mesh import Mesh

_PER_REQUEST = 1_000


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
        kinds = [{"name": name, "kind": "VALUE_KIND_DOUBLE"} for name in names]
        client.post("/v1/deviceTypes", json={"id": prefix, "metrics": kinds}).raise_for_status()
        for first in range(0, devices, _PER_REQUEST):
            _make(client, ids[first : first + _PER_REQUEST], prefix)
    return [(device, name) for device in ids for name in names]


def _make(client: httpx.Client, ids: Sequence[str], device_type: str) -> None:
    devices = [{"id": each, "deviceTypeId": device_type} for each in ids]
    client.post("/v1/devices:batchCreate", json={"devices": devices}).raise_for_status()
