"""The guides say what the contract and the settings say, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

import auth_svc.config
import ingest_svc.config
import telemetry_store.maintenance.config
import twin_svc.config
from gateway.contract import CONTRACT, read_contract
from gateway.settings import GatewayEnvironment
from meshkit.config import BusServiceSettings, FiledSettings, VaultSettings, environment_name
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.session import ClientSettings
from twinmesh_cli.settings import LauncherSettings

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
GUIDES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("*/README.md"),
    *ROOT.glob("sdk/*/README.md"),
]


def reasons_of_the_contract() -> dict[str, str]:
    """The comment of each reason, by its name in ErrorInfo."""
    proto = (ROOT / "proto/twinmesh/type/v1/error_reason.proto").read_text(encoding="utf-8")
    found = re.findall(r"((?:^  //.*\n)+)  ERROR_REASON_(\w+) = \d+;", proto, re.MULTILINE)
    return {name: " ".join(re.findall(r"// (.*)", comment)) for comment, name in found}


@pytest.mark.parametrize("guide", ["docs/security.md", "docs/roadmap.md"])
def test_tests_that_a_guide_names_are_there(guide: str) -> None:
    """A file, some of a pattern with braces, or a function of one."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE))
    named = re.findall(r"`(tests/[^`:]+|test_[*\w]+\.py)?(?:::)?(test_\w+)?`", text)
    assert named
    for pattern, function in named:
        if pattern:
            choices = re.search(r"\{(.*)\}", pattern)
            for choice in choices[1].split(",") if choices else [""]:
                found = pattern.replace(choices[0], choice) if choices else pattern
                assert any(ROOT.glob(found if "/" in found else f"tests/**/{found}")), found
        assert not function or function in defined, function


def test_every_reason_is_in_the_guide_with_its_code() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (\w+) \|", API, re.MULTILINE))
    contract = {name: comment for name, comment in reasons_of_the_contract().items() if name != "UNSPECIFIED"}
    assert {f"ERROR_REASON_{name}" for name in contract} == set(ErrorReason.keys()) - {
        "ERROR_REASON_UNSPECIFIED"
    }
    assert rows.keys() == contract.keys()
    for name, code in rows.items():
        told = "In a refusal" if code == "refusal" else code
        assert told in contract[name], f"{name}: {contract[name]}"


def test_metadata_keys_are_in_the_guide() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| \w+ \|.*\| ([a-zA-Z_, ]*) ?\|$", API, re.MULTILINE))
    for name, comment in reasons_of_the_contract().items():
        told = re.search(r"Metadata: ([\w, ]+)\.", comment)
        if told:
            assert rows[name].strip() == told[1], name


def test_every_json_route_is_in_the_guide_with_its_permission() -> None:
    permissions: dict[str, str] = {}
    for line in re.findall(r"^\| `(?:GET|POST|PATCH).*$", API, re.MULTILINE):
        routes, _, permission = (cell.strip() for cell in line.strip("|").split("|"))
        permissions |= dict.fromkeys(re.findall(r"`([A-Z]+ /[^`]+)`", routes), permission.strip("`"))
    words = {"any credential": "authenticated"}
    told = {route: words.get(permission, permission) for route, permission in permissions.items()}
    assert told == {
        f"{binding.method} {re.sub('{[a-z_]+[.]', '{', binding.template)}": rpc.permission
        for rpc in read_contract(CONTRACT).rpcs
        for binding in rpc.bindings
    }


@pytest.mark.parametrize(
    "settings",
    [
        LauncherSettings,
        ClientSettings,
        BusServiceSettings,
        auth_svc.config.AuthSettings,
        ingest_svc.config.IngestSettings,
        twin_svc.config.TwinSettings,
        telemetry_store.maintenance.config.MaintenanceSettings,
        GatewayEnvironment,
        VaultSettings,
    ],
)
def test_every_setting_is_in_the_deployment_guide(settings: type[FiledSettings]) -> None:
    names = {environment_name(name, field) for name, field in settings.model_fields.items()}
    assert {name for name in names if f"`{name}`" not in DEPLOYMENT} == set()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))
def test_links_lead_somewhere(guide: Path) -> None:
    text = re.sub(r"```.*?```", "", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (guide.parent / target).exists()] == []
