"""How `twinmesh api-keys` shows keys."""

import io

from rich.console import Console

from twinmesh.auth.v1 import api_key_service_pb2 as contract
from twinmesh_cli.api_keys import key_table


def test_a_narrow_terminal_shows_whole_ids_and_all_of_the_rest() -> None:
    permissions = ["telemetry:write", "device_certificate:write"]
    key = contract.ApiKey(id="5bpjhc24d2n7673x", display_name="my script", permissions=permissions)
    told = io.StringIO()
    Console(file=told, width=80).print(key_table([key]))
    assert key.id in told.getvalue()
    assert "…" not in told.getvalue()
