"""The lists of who may call which rpcs, held against the contract."""

from collections.abc import Iterator

import pytest

import asset_svc.contract
import auth_svc.contract
import ingest_svc.contract
import twin_svc.contract
from gateway.contract import CONTRACT, read_rpcs
from meshkit.callers import GATEWAY, Callers, callers_of
from meshkit.identity import SERVICE_PERMISSIONS
from twinmesh_cli.ca import MEMBERS

_LISTS: dict[str, Callers] = {
    "twinmesh.asset.": asset_svc.contract.CALLERS,
    "twinmesh.auth.": auth_svc.contract.CALLERS,
    "twinmesh.ingest.": ingest_svc.contract.CALLERS,
    "twinmesh.mesh.": auth_svc.contract.CALLERS,
    "twinmesh.twin.": twin_svc.contract.CALLERS,
}
_PERMISSIONS = {rpc.path: rpc.permission for rpc in read_rpcs(CONTRACT)}


def _callers(method: str) -> Iterator[str]:
    (listed,) = (each for package, each in _LISTS.items() if method.startswith(f"/{package}"))
    yield from callers_of(method, listed)


@pytest.mark.parametrize("method", _PERMISSIONS)
def test_each_rpc_lists_its_callers_and_only_services_call_what_is_theirs(method: str) -> None:
    callers = set(_callers(method))
    assert callers, "nobody may call it"
    assert callers <= set(MEMBERS)
    is_of_services = _PERMISSIONS[method] in SERVICE_PERMISSIONS
    assert (GATEWAY in callers) is not is_of_services
    if method != "/twinmesh.auth.v1.SessionService/GetJwks":
        assert is_of_services or callers == {GATEWAY}


@pytest.mark.parametrize("listed", _LISTS.values(), ids=_LISTS)
def test_what_is_listed_is_there(listed: Callers) -> None:
    names = {method.removeprefix("/") for method in _PERMISSIONS}
    names |= {name.partition("/")[0] for name in names}
    assert {name for name in listed if not name.startswith("envoy.")} <= names


def test_what_is_not_listed_nobody_calls() -> None:
    assert not callers_of("/twinmesh.asset.v1.ProfileService/New", asset_svc.contract.CALLERS)
    assert not callers_of("/twinmesh.asset.v1.NewService/Get", asset_svc.contract.CALLERS)
