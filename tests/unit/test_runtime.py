"""What a service says that cannot start, and how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshkit.testing import identities

_MODULES = {
    "auth_svc": "auth_svc",
    "asset_svc": "asset_svc",
    "ingest_svc": "ingest_svc",
    "twin_svc": "twin_svc",
    "maintenance": "telemetry_store.maintenance",
}


def _ended(service: str, identity_dir: Path) -> subprocess.CompletedProcess[str]:
    # Nothing answers at any of these addresses.
    nowhere = "127.0.0.1:1"
    settings = {
        "TWINMESH_SERVICE_DATABASE_URL": f"postgresql://nobody@{nowhere}/none",
        "TWINMESH_FEED_DATABASE_URL": f"postgresql://nobody@{nowhere}/none",
        "TWINMESH_NATS_URL": f"nats://{nowhere}",
        "TWINMESH_MESH_SECRET": "x" * 43,
        "TWINMESH_IDENTITY_DIR": str(identity_dir),
        **{f"TWINMESH_{name}_ADDRESS": nowhere for name in ("AUTH", "ASSET", "INGEST", "TWIN")},
    }
    return subprocess.run(
        [sys.executable, "-m", _MODULES[service]],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("service", _MODULES)
def test_what_a_service_needs_and_is_away_is_told_in_one_line(service: str) -> None:
    ended = _ended(service, identities.identity_dir(service))
    told = [json.loads(line) for line in ended.stderr.splitlines()]
    (cause,) = [line for line in told if line["message"] == "cannot start"]
    assert "127.0.0.1" in cause["error"], told
    assert ended.returncode == 1


@pytest.mark.parametrize("service", _MODULES)
def test_a_folder_without_an_identity_is_told_in_one_line(service: str, tmp_path: Path) -> None:
    ended = _ended(service, tmp_path)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{service}: TWINMESH_IDENTITY_DIR={tmp_path} holds no identity: ")
    assert "twinmesh ca issue" in line
    assert ended.returncode == 2


def test_the_identity_of_another_service_is_told_in_one_line() -> None:
    folder = identities.identity_dir("asset_svc")
    ended = _ended("twin_svc", folder)
    assert ended.stderr == (
        f"twin_svc: TWINMESH_IDENTITY_DIR={folder} is the identity of asset_svc, not of twin_svc\n"
    )
    assert ended.returncode == 2


@pytest.mark.parametrize("content", [b"", b"no certificate\n"])
def test_files_that_hold_something_else_are_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.pem").write_bytes(content)
    (tmp_path / "authorities.pem").write_bytes(content)
    ended = _ended("asset_svc", tmp_path)
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"asset_svc: TWINMESH_IDENTITY_DIR={tmp_path} holds no identity: ")
    assert ended.returncode == 2
