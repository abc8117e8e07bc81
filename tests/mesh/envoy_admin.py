"""What Envoy tells by its admin interface."""

import json

import httpx

from meshkit.testing.mesh import Mesh


def port_of(mesh: Mesh) -> int:
    """Return the port on 127.0.0.1 of a mesh's admin interface of Envoy."""
    config = json.loads((mesh.home / "envoy" / "envoy.json").read_text())
    return int(config["admin"]["address"]["socket_address"]["port_value"])


def counted(port: int, counter: str) -> int:
    """Return what Envoy has counted since its start.

    Args:
        port: of its admin interface on 127.0.0.1.
        counter: name of a counter or gauge.
    """
    answer = httpx.get(
        f"http://127.0.0.1:{port}/stats",
        params={"format": "json", "filter": f"^{counter}$"},
        trust_env=False,
    )
    return int(answer.json()["stats"][0]["value"])
