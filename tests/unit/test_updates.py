"""Update masks, over any resource, sent message and paths."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidArgument
from meshkit.updates import changed_fields, updated
from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.asset.v1.device_service_pb2 import DEVICE_ROLE_ENDPOINT, DEVICE_ROLE_GATEWAY, Device
from twinmesh.ingest.v1.ingest_policy_service_pb2 import IngestPolicy
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import Point

CHANGEABLE = [
    "display_name", "asset_type_id", "parent_id", "location", "address", "tags",
]  # fmt: skip
texts = st.sampled_from(["", "a", "b"])
points = st.none() | st.builds(
    Point,
    latitude=st.sampled_from([0.0, 1.5]),
    longitude=st.sampled_from([0.0, -2.0]),
    altitude=st.none() | st.sampled_from([0.0, 3.0]),
)
assets = st.builds(
    Asset,
    id=st.just("a"),
    display_name=texts,
    asset_type_id=texts,
    parent_id=texts,
    location=points,
    address=texts,
    tags=st.lists(texts, max_size=3),
)


def refusal(path: str) -> InvalidArgument | None:
    try:
        updated(Asset(id="a"), Asset(id="a"), [path])
    except InvalidArgument as error:
        return error
    return None


def value(asset: Asset, name: str) -> object:
    if name == "location":
        return asset.location.SerializeToString() if asset.HasField("location") else None
    return list(asset.tags) if name == "tags" else getattr(asset, name)


@given(current=assets, sent=assets, paths=st.sets(st.sampled_from(CHANGEABLE), min_size=1))
def test_named_fields_are_taken_over_and_the_others_kept(
    current: Asset, sent: Asset, paths: set[str]
) -> None:
    before = current.SerializeToString(deterministic=True)
    result = updated(current, sent, sorted(paths))
    for name in CHANGEABLE:
        assert value(result, name) == value(sent if name in paths else current, name)
    assert current.SerializeToString(deterministic=True) == before


@given(current=assets, sent=assets)
def test_without_mask_what_is_set_is_taken_over(current: Asset, sent: Asset) -> None:
    present = {field.name for field, _ in sent.ListFields()}
    result = updated(current, sent, [])
    for name in CHANGEABLE:
        assert value(result, name) == value(sent if name in present else current, name)


@given(current=assets, sent=assets)
def test_a_star_takes_everything(current: Asset, sent: Asset) -> None:
    result = updated(current, sent, ["*"])
    assert [value(result, name) for name in CHANGEABLE] == [value(sent, name) for name in CHANGEABLE]


@given(
    current=points,
    sent=points,
    paths=st.sets(st.sampled_from(["latitude", "longitude", "altitude"]), min_size=1),
)
def test_named_parts_of_a_nested_message_are_taken_over(
    current: Point | None, sent: Point | None, paths: set[str]
) -> None:
    result = updated(
        Asset(id="a", location=current),
        Asset(id="a", location=sent),
        [f"location.{name}" for name in sorted(paths)],
    )
    if current is None and sent is None:
        assert not result.HasField("location")
    for name in ("latitude", "longitude", "altitude"):
        source = (sent if name in paths else current) or Point()
        assert getattr(result.location, name) == getattr(source, name)
    altitude_from = (sent if "altitude" in paths else current) or Point()
    assert result.location.HasField("altitude") == altitude_from.HasField("altitude")


@given(
    current=st.dictionaries(st.sampled_from(["a", "b.c", "d"]), texts),
    sent=st.dictionaries(st.sampled_from(["a", "b.c", "d"]), texts),
    keys=st.sets(st.sampled_from(["a", "b.c", "d"]), min_size=1),
)
def test_named_entries_of_a_map_are_taken_over(
    current: dict[str, str], sent: dict[str, str], keys: set[str]
) -> None:
    result = updated(
        Device(id="a", network_metadata=current),
        Device(id="a", network_metadata=sent),
        [f"network_metadata.{key}" for key in sorted(keys)],
    )
    kept = {key: text for key, text in current.items() if key not in keys}
    taken = {key: text for key, text in sent.items() if key in keys}
    assert result.network_metadata == {**kept, **taken}


@given(path=st.text(alphabet="abdegilmnopstuv_.*", max_size=20))
def test_any_path_is_followed_or_refused_by_name(path: str) -> None:
    refused = refusal(path)
    if refused is not None:
        assert refused.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
        assert [violation.field for violation in refused.violations] == ["update_mask"]


@pytest.mark.parametrize("path", ["tags", "*", "location", "location.latitude", "displayName", "id", "etag"])
def test_paths_of_the_contract_are_followed(path: str) -> None:
    assert refusal(path) is None


@pytest.mark.parametrize(
    "path",
    ["", ".", "tags.", ".tags", "tag", "tags.a", "location.a", "location.latitude.a", "address.a", "*.a"],
)
def test_other_paths_are_refused(path: str) -> None:
    assert refusal(path) is not None


def test_a_star_stands_alone() -> None:
    with pytest.raises(InvalidArgument, match="stand alone"):
        updated(Asset(id="a"), Asset(id="a"), ["*", "tags"])


@pytest.mark.parametrize("paths", [[], ["*"], ["role"]])
def test_what_is_fixed_may_be_sent_as_it_is(paths: list[str]) -> None:
    current = Device(id="a", role=DEVICE_ROLE_GATEWAY, create_time=Timestamp(seconds=5))
    same = Device(id="a", role=DEVICE_ROLE_GATEWAY, create_time=Timestamp(seconds=5))
    assert updated(current, same, paths).role == DEVICE_ROLE_GATEWAY
    with pytest.raises(InvalidArgument) as refused:
        updated(current, Device(id="a", role=DEVICE_ROLE_ENDPOINT), paths)
    assert refused.value.reason == ErrorReason.ERROR_REASON_FIELD_IMMUTABLE
    assert [violation.field for violation in refused.value.violations] == ["role"]


def test_a_field_that_says_its_default_differs_from_one_that_says_nothing() -> None:
    nothing, off = IngestPolicy(), IngestPolicy(raw_enabled=False)
    assert changed_fields(nothing, off) == changed_fields(off, nothing) == ["raw_enabled"]
    assert changed_fields(off, IngestPolicy(raw_enabled=False)) == []
