"""AssetService and AssetTypeService over a real server and database."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from meshkit.testing.calls import failure
from tests.rpc.asset.conftest import Caller
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1.asset_service_pb2 import (
    Asset,
    CreateAssetRequest,
    DeleteAssetRequest,
    GetAssetRequest,
    ListAssetsRequest,
    UpdateAssetRequest,
)
from twinmesh.asset.v1.asset_type_service_pb2 import (
    HEALTH_METHOD_THRESHOLD,
    HEALTH_METHOD_WEIGHTED,
    AssetType,
    CreateAssetTypeRequest,
    DeleteAssetTypeRequest,
    GetAssetTypeRequest,
    HealthAlgorithm,
    HealthInput,
    ListAssetTypesRequest,
    UpdateAssetTypeRequest,
)
from twinmesh.type.v1.value_pb2 import Point

Code = grpc.StatusCode


async def add_type(caller: Caller, type_id: str = "site", **fields: Any) -> AssetType:
    asset_type = AssetType(id=type_id, **fields)
    return await caller.asset_types.CreateAssetType(CreateAssetTypeRequest(asset_type=asset_type))


async def add(caller: Caller, asset_id: str, **fields: Any) -> Asset:
    asset = Asset(**{"id": asset_id, "asset_type_id": "site", **fields})
    return await caller.assets.CreateAsset(CreateAssetRequest(asset=asset))


async def update(caller: Caller, *paths: str, **fields: Any) -> Asset:
    request = UpdateAssetRequest(asset=Asset(**fields), update_mask=FieldMask(paths=paths))
    return await caller.assets.UpdateAsset(request)


async def test_an_asset_type_comes_back_as_it_was_made(caller: Caller) -> None:
    inputs = [
        HealthInput(metric="temperature", weight=0.1, good_min=1, good_max=5, limit_min=-1, limit_max=8)
    ]
    algorithm = HealthAlgorithm(method=HEALTH_METHOD_THRESHOLD, inputs=inputs)
    made = await add_type(caller, "cold-storage", display_name="Cold", health_algorithm=algorithm)
    assert made.health_algorithm == algorithm
    assert await caller.asset_types.GetAssetType(GetAssetTypeRequest(id="cold-storage")) == made
    plain = await add_type(caller, "site")
    assert not plain.HasField("health_algorithm")
    listed = await caller.asset_types.ListAssetTypes(ListAssetTypesRequest())
    assert list(listed.asset_types) == [made, plain]


async def test_a_nested_field_of_an_asset_type_is_updated_alone(caller: Caller) -> None:
    inputs = [HealthInput(metric="temperature", weight=1)]
    await add_type(caller, health_algorithm=HealthAlgorithm(method=HEALTH_METHOD_THRESHOLD, inputs=inputs))
    sent = AssetType(id="site", health_algorithm=HealthAlgorithm(method=HEALTH_METHOD_WEIGHTED))
    changed = await caller.asset_types.UpdateAssetType(
        UpdateAssetTypeRequest(asset_type=sent, update_mask=FieldMask(paths=["health_algorithm.method"]))
    )
    assert changed.health_algorithm == HealthAlgorithm(method=HEALTH_METHOD_WEIGHTED, inputs=inputs)


@pytest.mark.parametrize(
    ("method", "each", "field"),
    [
        (HEALTH_METHOD_THRESHOLD, {"good_min": 2, "good_max": 1, "limit_max": 3}, "[0]"),
        (HEALTH_METHOD_THRESHOLD, {"good_min": 1, "good_max": 2, "limit_min": 1.5, "limit_max": 3}, "[0]"),
        (HEALTH_METHOD_WEIGHTED, {"weight": 0}, ""),
    ],
)
async def test_health_inputs_make_sense(
    caller: Caller, method: Any, each: dict[str, float], field: str
) -> None:
    algorithm = HealthAlgorithm(method=method, inputs=[HealthInput(metric="temperature", **each)])
    told = await failure(add_type(caller, health_algorithm=algorithm))
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert told.fields == [f"asset_type.health_algorithm.inputs{field}"]


@pytest.mark.parametrize(
    "location",
    [None, Point(), Point(latitude=-90, longitude=180), Point(latitude=1, longitude=2, altitude=0)],
)
async def test_an_asset_comes_back_as_it_was_made(caller: Caller, location: Point | None) -> None:
    await add_type(caller)
    await add(caller, "site-1")
    made = await add(caller, "room", parent_id="site-1", location=location, address="Kai 1", tags=["z", "a"])
    assert made.HasField("location") == (location is not None)
    assert made.location == (location or Point())
    assert await caller.assets.GetAsset(GetAssetRequest(id="room")) == made
    listed = await caller.assets.ListAssets(ListAssetsRequest(parent_id="site-1"))
    assert list(listed.assets) == [made]


async def test_a_location_is_updated_as_a_whole_or_in_part(caller: Caller) -> None:
    await add_type(caller)
    await add(caller, "a", location=Point(latitude=1, longitude=2, altitude=3))
    whole = await update(caller, id="a", location=Point(latitude=4, longitude=5))
    assert whole.location == Point(latitude=4, longitude=5)
    part = await update(caller, "location.altitude", id="a", location=Point(altitude=6))
    assert part.location == Point(latitude=4, longitude=5, altitude=6)
    cleared = await update(caller, "location.altitude", id="a")
    assert cleared.location == Point(latitude=4, longitude=5)
    gone = await update(caller, "location", id="a")
    assert not gone.HasField("location")
    still_gone = await update(caller, "location.altitude", id="a")
    assert not still_gone.HasField("location")
    begun = await update(
        caller, "location.latitude", "location.longitude", id="a", location=Point(latitude=7)
    )
    assert begun.location == Point(latitude=7)


async def test_an_asset_needs_a_type_that_exists(caller: Caller) -> None:
    await add_type(caller)
    told = await failure(add(caller, "a", asset_type_id=""))
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["asset.asset_type_id"])
    told = await failure(add(caller, "a", asset_type_id="nothing"))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
    assert told.metadata == {"resource": "asset_type", "id": "nothing"}
    told = await failure(add(caller, "a", parent_id="nowhere"))
    assert told.metadata == {"resource": "asset", "id": "nowhere"}
    await add(caller, "a")
    told = await failure(update(caller, "asset_type_id", id="a"))
    assert (told.code, told.fields) == (Code.INVALID_ARGUMENT, ["asset.asset_type_id"])


async def test_what_others_refer_to_stays(caller: Caller) -> None:
    await add_type(caller)
    await caller.add_type()
    await add(caller, "a")
    await add(caller, "b", parent_id="a")
    await caller.add_device("temp-1", asset_id="b")
    for call in (
        caller.asset_types.DeleteAssetType(DeleteAssetTypeRequest(id="site")),
        caller.assets.DeleteAsset(DeleteAssetRequest(id="a")),
        caller.assets.DeleteAsset(DeleteAssetRequest(id="b")),
    ):
        told = await failure(call)
        assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "IN_USE")


async def test_the_hierarchy_has_no_cycles(caller: Caller) -> None:
    await add_type(caller)
    told = await failure(add(caller, "itself", parent_id="itself"))
    assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "PARENT_INVALID")
    await add(caller, "a")
    await add(caller, "b", parent_id="a")
    await add(caller, "c", parent_id="b")
    for parent in ("a", "b", "c"):
        told = await failure(update(caller, id="a", parent_id=parent))
        assert (told.code, told.reason) == (Code.FAILED_PRECONDITION, "PARENT_INVALID")
    await update(caller, "parent_id", id="c")
    assert (await update(caller, id="a", parent_id="c")).parent_id == "c"


async def test_many_writers_cannot_close_a_cycle_together(caller: Caller) -> None:
    await add_type(caller)
    ring = [f"ring-{number}" for number in range(8)]
    for asset_id in ring:
        await add(caller, asset_id)
    answers = await asyncio.gather(
        *(update(caller, id=each, parent_id=ring[number - 1]) for number, each in enumerate(ring)),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if not isinstance(answer, Asset)]
    # Whoever comes last would close it.
    assert len(refused) == 1, answers
    assert isinstance(refused[0], grpc.aio.AioRpcError)
    assert refused[0].code() == Code.FAILED_PRECONDITION


async def test_services_learn_what_is_part_of_an_asset(caller: Caller, profiles: Any) -> None:
    await add_type(caller)
    for asset_id, parent_id in [("hall", ""), ("line", "hall"), ("pump", "line"), ("yard", "")]:
        await add(caller, asset_id, parent_id=parent_id)

    async def subtree(asset_id: str, tenant: str = "demo") -> list[str]:
        request = profile_pb2.GetSubtreeRequest(tenant=tenant, asset_id=asset_id)
        return sorted((await profiles.GetSubtree(request)).asset_ids)

    assert await subtree("hall") == ["hall", "line", "pump"]
    assert await subtree("yard") == ["yard"]
    await update(caller, "parent_id", id="line", parent_id="yard")
    assert await subtree("hall") == ["hall"]
    assert await subtree("yard") == ["line", "pump", "yard"]
    for asset_id, tenant in [("absent", "demo"), ("hall", "rival")]:
        told = await failure(subtree(asset_id, tenant))
        assert (told.code, told.reason) == (Code.NOT_FOUND, "NOT_FOUND")


async def test_services_learn_which_assets_exist(caller: Caller, profiles: Any) -> None:
    await add_type(caller)
    await add(caller, "hall")

    async def existing(tenant: str) -> list[str]:
        request = profile_pb2.BatchCheckAssetsRequest(tenant=tenant, asset_ids=["hall", "absent", "hall"])
        return list((await profiles.BatchCheckAssets(request)).asset_ids)

    assert await existing("demo") == ["hall"]
    assert await existing("rival") == []
