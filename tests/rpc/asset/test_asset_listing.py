"""Pages and filters of the lists."""

import itertools

import grpc
import hypothesis
import pytest
from hypothesis import strategies

from meshkit import paging
from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import Caller, Connect
from twinmesh.asset.v1.device_service_pb2 import (
    DEVICE_ROLE_CHILD,
    DEVICE_ROLE_GATEWAY,
    BatchCreateDevicesRequest,
    Device,
    ListDevicesRequest,
)

Code = grpc.StatusCode
_tenants = (f"paged-{number}" for number in itertools.count())
ids = strategies.from_regex(r"[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?", fullmatch=True)


async def listed(caller: Caller, **fields: object) -> list[str]:
    answer = await caller.devices.ListDevices(ListDevicesRequest(**fields))  # type: ignore[arg-type]
    return [device.id for device in answer.devices]


@hypothesis.given(
    device_ids=strategies.sets(ids, min_size=1, max_size=20), page_size=strategies.integers(1, 25)
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
async def test_pages_one_after_another_are_the_whole_list(
    connect: Connect, device_ids: set[str], page_size: int
) -> None:
    tenant = next(_tenants)
    caller = connect(tenant)
    await caller.add_type()
    # Device ids are unique in the installation, and every example has the same database.
    own_ids = {f"{tenant}-{each}" for each in device_ids}
    devices = [Device(id=each, device_type_id="sensor") for each in own_ids]
    await caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=devices))
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        answer = await caller.devices.ListDevices(ListDevicesRequest(page_size=page_size, page_token=token))
        pages.append([device.id for device in answer.devices])
        token = answer.next_page_token
    assert list(itertools.chain.from_iterable(pages)) == sorted(own_ids)
    assert all(len(page) == page_size for page in pages[:-1])
    assert pages[-1]


@pytest.fixture
async def fleet(caller: Caller) -> Caller:
    """A caller with 1,101 devices of its own."""
    await caller.add_type("sensor")
    await caller.add_type("hub")
    special = [
        Device(id="hub-1", device_type_id="hub", role=DEVICE_ROLE_GATEWAY, display_name="Kühl%haus"),
        Device(
            id="child-1", device_type_id="sensor", role=DEVICE_ROLE_CHILD, parent_id="hub-1", tags=["a", "b"]
        ),
        Device(id="other-1", device_type_id="sensor", display_name=r"back\slash under_score", tags=["b"]),
    ]
    many = [Device(id=f"many-{number:04}", device_type_id="sensor") for number in range(1098)]
    for batch in (special + many[:900], many[900:]):
        await caller.devices.BatchCreateDevices(BatchCreateDevicesRequest(devices=batch))
    return caller


async def test_page_sizes_have_a_default_and_a_maximum(fleet: Caller) -> None:
    assert len(await listed(fleet)) == 100
    assert len(await listed(fleet, page_size=7)) == 7
    assert len(await listed(fleet, page_size=10**9)) == 1000
    told = await failure(fleet.devices.ListDevices(ListDevicesRequest(page_size=-1)))
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["page_size"])


async def test_filters_must_all_match(fleet: Caller) -> None:
    assert await listed(fleet, device_type_id="hub") == ["hub-1"]
    assert await listed(fleet, parent_id="hub-1") == ["child-1"]
    assert await listed(fleet, role=DEVICE_ROLE_CHILD) == ["child-1"]
    assert await listed(fleet, tag="b") == ["child-1", "other-1"]
    assert await listed(fleet, tag="b", role=DEVICE_ROLE_CHILD) == ["child-1"]
    assert await listed(fleet, tag="b", device_type_id="hub") == []
    assert await listed(fleet, asset_id="nowhere") == []


async def test_search_is_for_text_as_it_stands_in_any_case(fleet: Caller) -> None:
    found = {
        "HUB": ["hub-1"],
        "KÜHL": ["hub-1"],
        "l%h": ["hub-1"],
        "%": ["hub-1"],
        "_": ["other-1"],
        "\\": ["other-1"],
        "Back\\Slash": ["other-1"],
        "-1097": ["many-1097"],
        "'; --": [],
    }
    assert {search: await listed(fleet, search=search) for search in found} == found


async def test_a_page_token_belongs_to_its_question(connect: Connect, fleet: Caller) -> None:
    answer = await fleet.devices.ListDevices(ListDevicesRequest(page_size=1, tag="b"))
    token = answer.next_page_token
    assert await listed(fleet, page_size=5, tag="b", page_token=token) == ["other-1"]
    forged = [
        paging.encode(["demo", "twinmesh.asset.v1.ListDevicesRequest", {}], after)
        for after in (5, ["x"], "\0", "\ud800", "A")
    ]
    for asked, request in [
        (fleet, ListDevicesRequest(tag="a", page_token=token)),
        (fleet, ListDevicesRequest(page_token="nonsense")),
        (connect("other"), ListDevicesRequest(tag="b", page_token=token)),
        *((fleet, ListDevicesRequest(page_token=each)) for each in forged),
    ]:
        told = await failure(asked.devices.ListDevices(request))
        assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize("name", ["search", "tag"])
async def test_nul_in_a_filter_is_refused_by_name(caller: Caller, name: str) -> None:
    told = await failure(caller.devices.ListDevices(ListDevicesRequest(**{name: "a\0b"})))  # type: ignore[arg-type]
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, [name])
