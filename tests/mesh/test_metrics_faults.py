"""What a killed process counted ends with it: the one in its place counts anew, and nothing twice."""

import json
from typing import Any

from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.stream_site import Site, sending


def reported(mesh: Mesh, process: str) -> list[dict[str, Any]]:
    """What `twinmesh metrics` tells of a process, [] while it tells nothing."""
    shown = mesh.twinmesh("metrics", "--service", process, "--json", check=False).stdout
    series: list[dict[str, Any]] = json.loads(shown or "[]")
    return series


def counted(series: list[dict[str, Any]]) -> float:
    values: list[float] = [
        each["value"] for each in series if each["name"] == "twinmesh.twin.commits.applied"
    ]
    return sum(values)


async def test_a_killed_process_leaves_nothing_in_the_metrics(fragile_site: Site) -> None:
    mesh = fragile_site.mesh
    client = await fragile_site.client()
    async with sending([client]):
        await client.until_durable(1)
    eventually(lambda: counted(reported(mesh, "twin_svc")) > 0, "commits are counted")
    (killed,) = {each["instance"] for each in reported(mesh, "twin_svc")}

    mesh.kill("twin_svc")

    def replaced() -> bool:
        return killed not in {each["instance"] for each in reported(mesh, "twin_svc")} != set()

    eventually(replaced, "another process reports in its place", seconds=60)
    series = reported(mesh, "twin_svc")
    assert len({each["instance"] for each in series}) == 1
    assert len({(each["name"], json.dumps(each["attributes"])) for each in series}) == len(series)
