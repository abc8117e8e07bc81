"""Writes the OpenAPI document of a descriptor set.

    python -m tools.openapi twinmesh.binpb twinmesh.json

`make generate` runs it, with the Python code on its path that was generated with the set.
"""

import json
import sys
from pathlib import Path

from gateway import openapi


def main(descriptor_set: Path, target: Path) -> None:
    """Command line."""
    text = json.dumps(openapi.document(descriptor_set), indent=1, ensure_ascii=False)
    target.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
