"""`twinmesh config`."""

import json
from typing import Annotated

import typer

from meshkit.config import VaultSettings
from meshkit.runtime import read_settings
from twinmesh_cli.session import ClientSettings
from twinmesh_cli.settings import load_settings


def config(as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False) -> None:
    """List every setting with its value and default; secrets are masked."""
    rows = [
        *load_settings().rows(),
        *read_settings("twinmesh", ClientSettings).rows(),
        *read_settings("twinmesh", VaultSettings).rows(),
    ]
    if as_json:
        listed = [
            {"name": row.name, "value": row.value, "default": row.default, "description": row.description}
            for row in rows
        ]
        print(json.dumps(listed, indent=2))
        return
    for row in rows:
        # Names and values stay whole on a line, so that both can be searched and copied.
        changed = "" if row.value == row.default else f"  (default: {row.default or 'unset'})"
        print(f"{row.name}={row.value}{changed}\n    {row.description}")
