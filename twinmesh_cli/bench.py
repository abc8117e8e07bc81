"""`twinmesh bench`: measures a mesh of its own, from a checkout."""

import importlib
from enum import StrEnum
from typing import Annotated

import typer

from twinmesh_cli.session import fail


class Bench(StrEnum):
    """What can be measured."""

    UNARY = "unary"
    QUERY = "query"
    INGEST = "ingest"
    LOAD = "load"
    STREAMS = "streams"
    LATENCY = "latency"
    TWINS = "twins"
    MQTT = "mqtt"
    HOT_PATH = "hot_path"
    ANOMALY = "anomaly"
    STORAGE = "storage"
    ACCESS = "access"
    ROLLUPS = "rollups"
    REVOCATIONS = "revocations"


def bench(
    name: Annotated[Bench, typer.Argument(help="What to measure.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure and print a table; run it alone on the machine."""
    try:
        module = importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        fail(f"benches need a checkout with its development packages (make install): {error}")
    module.run().show(as_json=as_json)
