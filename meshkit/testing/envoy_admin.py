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


def sent_on(port: int, cluster: str) -> int:
    """Return how many requests Envoy has sent on to a service, or is about to, that are not answered yet.

    Args:
        port: of its admin interface on 127.0.0.1.
        cluster: name of the service.
    """
    return sum(
        counted(port, f"cluster.{cluster}.{gauge}")
        for gauge in ("upstream_rq_active", "upstream_rq_pending_active")
    )
