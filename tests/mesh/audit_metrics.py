"""What processes say of their audit."""

import json
from collections import Counter

from meshkit.testing.mesh import Mesh


def lost_events(mesh: Mesh) -> Counter[str]:
    """Return how many events the processes of each service have lost."""
    lost: Counter[str] = Counter()
    for each in json.loads(mesh.twinmesh("metrics", "--json").stdout):
        if each["name"] == "twinmesh.audit.lost":
            lost[each["service"]] += each["value"]
    return lost
