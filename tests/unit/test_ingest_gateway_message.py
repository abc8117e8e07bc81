"""Messages of gateways: taken apart by child, and put together from chunks."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpointer import JsonPointer

from ingest_svc import device_message
from ingest_svc.assembler import ranges
from ingest_svc.device_message import ChunkPlace, DeviceMessage, MalformedMessageError, MessageObject
from ingest_svc.profile import DeviceProfile, GatewayRules, MessageSchema, MetricProfile
from ingest_svc.reading import NUMBER, Reading
from ingest_svc.window import TimeWindow
from meshkit.errors import ResourceExhausted
from telemetry_store.chunks import ChunkedMessage, Chunks
from telemetry_store.columns import Kind
from tests.unit.ingest_world import NOW, OFF, PUMP, World, origin
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

RULES = GatewayRules(JsonPointer("/id"), takes_chunks=True)
HUB = DeviceProfile("hub", True, {"seen": MetricProfile(Kind.INT, "")}, gateway=RULES)
ARRIVAL = NOW - 5


def names(content: Any, pointer: str = "/id") -> list[str | None]:
    rules = GatewayRules(JsonPointer(pointer), takes_chunks=False)
    found = device_message.objects(json.dumps(content).encode(), most=9)
    return [device_message.child(each, rules) for each in found]


def test_each_object_names_its_child() -> None:
    assert names([{"id": "a"}, {"id": 17}, {"x": 1}, {"id": None}]) == ["a", "17", None, None]
    assert names({"tag": [{"mac": "ac:23"}]}, "/tag/0/mac") == ["ac:23"]


@pytest.mark.parametrize("name", ["", "x" * 129, "a\0b", True, 1.5, {}, []])
def test_what_is_no_name_is_malformed(name: object) -> None:
    with pytest.raises(MalformedMessageError, match=r"^message, /id: "):
        names({"id": name})


def test_an_object_is_read_by_the_schema_of_its_child() -> None:
    schema = MessageSchema({"x": JsonPointer("/values/t")}, JsonPointer("/ms"), 1_000)
    child = DeviceProfile("sensor", True, {"x": MetricProfile(Kind.DOUBLE, "")}, schema)
    found = MessageObject("message[3]", {"id": "a", "ms": 7, "values": {"t": 1.5}, "x": 9})
    read = device_message.reading(found, "d-1", child, arrival_us=ARRIVAL, rules=RULES)
    assert read == Reading("d-1", 7_000, [("x", NUMBER, 1.5)])
    # Flat, the child's name is no metric; and nothing of it is known without a value.
    flat = DeviceProfile("sensor", True, {"x": MetricProfile(Kind.DOUBLE, "")})
    read = device_message.reading(
        MessageObject("message", {"id": "a", "x": 2.5}), "d-1", flat, arrival_us=ARRIVAL, rules=RULES
    )
    assert read == Reading("d-1", ARRIVAL, [("x", NUMBER, 2.5)])
    with pytest.raises(MalformedMessageError, match="states no value"):
        device_message.reading(MessageObject("message", {"id": "a"}), "d-1", flat, arrival_us=0, rules=RULES)


def unpacked(content: Any) -> DeviceMessage:
    return device_message.unpacked(DeviceMessage("gw", json.dumps(content).encode(), ARRIVAL, 4))


ENVELOPE = {"messageId": "m", "index": 1, "total": 3, "payload": "text ä"}


def test_an_envelope_is_a_chunk() -> None:
    assert unpacked(ENVELOPE) == DeviceMessage(
        "gw", "text ä".encode(), ARRIVAL, 4, chunk=ChunkPlace("m", 1, 3, is_array=False)
    )
    elements = unpacked({**ENVELOPE, "messageId": 12, "payload": [1, {"a": 2}]})
    assert (elements.payload, elements.chunk) == (b'[1,{"a":2}]', ChunkPlace("12", 1, 3, is_array=True))


@pytest.mark.parametrize(
    "content", [[], "text", {"x": 1}, {**ENVELOPE, "more": 1}, {"messageId": "m", "total": 1}]
)
def test_anything_else_is_a_message(content: Any) -> None:
    message = DeviceMessage("gw", json.dumps(content).encode(), ARRIVAL)
    assert device_message.unpacked(message) is message


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": [json.loads("[" * 400 + "]" * 400)]},
        {"messageId": ""},
        {"messageId": "a b"},
        {"messageId": "ä"},
        {"messageId": "x" * 129},
        {"messageId": True},
        {"messageId": None},
        {"index": -1},
        {"index": 3},
        {"index": True},
        {"index": 1.0},
        {"total": 0},
        {"total": 10_001},
        {"total": "3"},
        {"payload": None},
        {"payload": {}},
        {"payload": 7},
    ],
)
def test_an_envelope_that_is_wrong_says_where(wrong: dict[str, Any]) -> None:
    ((field, _),) = wrong.items()
    # An index beyond the total is the index's fault, a total of nonsense the total's.
    with pytest.raises(MalformedMessageError, match=f"^{field}: "):
        unpacked({**ENVELOPE, **wrong})


def test_a_digest_tells_contents_apart() -> None:
    message = DeviceMessage("gw", b"x", ARRIVAL)
    chunk = ChunkPlace("m", 0, 2, is_array=False)
    different = [
        [],
        [message],
        [message, message],
        [DeviceMessage("gw", b"y", ARRIVAL)],
        [DeviceMessage("g", b"wx", ARRIVAL)],
        [DeviceMessage("gw", b"x", ARRIVAL, all_or_nothing=False)],
        [DeviceMessage("gw", b"x", ARRIVAL, all_or_nothing=True)],
        [DeviceMessage("gw", b"x", ARRIVAL, chunk=chunk)],
        [DeviceMessage("gw", b"x", ARRIVAL, chunk=ChunkPlace("m", 1, 2, is_array=False))],
        [DeviceMessage("gw", b"x", ARRIVAL, chunk=ChunkPlace("m", 0, 2, is_array=True))],
    ]
    digests = {device_message.digest(messages) for messages in different}
    assert len(digests) == len(different)
    assert device_message.digest([message]) == device_message.digest([DeviceMessage("gw", b"x", NOW, 9)])


@pytest.mark.parametrize(
    ("indexes", "told"),
    [([], ""), ([4], "4"), ([3, 4, 5, 9], "3-5, 9"), ([0, 1], "0-1"), ([0, 2, 4], "0, 2, 4")],
)
def test_ranges_are_compact(indexes: list[int], told: str) -> None:
    assert ranges(indexes) == told


def test_many_ranges_are_cut() -> None:
    assert len(ranges(range(0, 10_000, 2))) < 300


@pytest.fixture
def world() -> World:
    world = World()
    world.assets.devices |= {"hub": HUB, **{f"b-{number}": PUMP for number in range(20)}}
    world.assets.children = {("hub", str(number)): f"b-{number}" for number in range(20)}
    return world


async def stored(
    world: World, *messages: DeviceMessage
) -> tuple[ingest_pb2.BatchResult, dict[str, list[float]]]:
    """Return what is told of messages, and the values to be stored by device."""
    request, _ = await world.intake.take_messages(origin(None), messages, received_us=NOW)
    by_id = {series_id: key.device_id for key, series_id in world.series_ids.made.items()}
    found: dict[str, list[float]] = {}
    for columns in request.samples:
        for series, value in zip(columns.series.tolist(), columns.values.tolist(), strict=True):
            found.setdefault(by_id[series], []).append(value)
    return ingest_pb2.BatchResult.FromString(request.outcome), found


def hub(content: Any, **fields: Any) -> DeviceMessage:
    return DeviceMessage("hub", json.dumps(content).encode(), NOW, **fields)


OBJECTS = st.lists(
    st.tuples(st.integers(0, 24), st.floats(-1e6, 1e6, allow_nan=False)), min_size=1, max_size=30
)


@given(objects=OBJECTS)
async def test_every_value_reaches_its_child_or_is_refused(objects: list[tuple[int, float]]) -> None:
    world = World()
    world.assets.devices |= {"hub": HUB, **{f"b-{number}": PUMP for number in range(20)}}
    world.assets.children = {("hub", str(number)): f"b-{number}" for number in range(20)}
    told, values = await stored(world, hub([{"id": number, "x": value} for number, value in objects]))
    expected: dict[str, list[float]] = {}
    for number, value in objects:
        if number < 20:
            expected.setdefault(f"b-{number}", []).append(value)
    assert values == expected
    assert told.stored_samples == sum(map(len, expected.values()))
    assert told.refused_samples == len(objects) - told.stored_samples
    assert len(world.assets.children_asked) == 1


async def test_modes_are_of_each_message(world: World) -> None:
    good, bad = [{"id": 1, "x": 1.0}], [{"id": 2, "x": 2.0}, {"id": "nobody", "x": 3.0}]
    told, values = await stored(
        world, hub(good, all_or_nothing=True), hub(bad, all_or_nothing=True), hub(bad), hub(good)
    )
    assert values == {"b-1": [1.0, 1.0], "b-2": [2.0]}
    reasons = [(refusal.reading_index, refusal.reason) for refusal in told.refusals]
    assert reasons == [
        (1, ErrorReason.ERROR_REASON_CHILD_UNKNOWN),
        (1, ErrorReason.ERROR_REASON_BATCH_REFUSED),
        (2, ErrorReason.ERROR_REASON_CHILD_UNKNOWN),
    ]
    assert (told.stored_samples, told.refused_samples) == (3, 3)


async def test_a_disabled_child_is_refused_alone(world: World) -> None:
    world.assets.devices["b-2"] = OFF
    told, values = await stored(world, hub([{"id": 1, "x": 1.0}, {"id": 2, "x": 2.0}]))
    assert values == {"b-1": [1.0]}
    assert [refusal.reason for refusal in told.refusals] == [ErrorReason.ERROR_REASON_DEVICE_DISABLED]
    assert told.refusals[0].device_id == "b-2"


async def test_a_chunk_waits_where_there_is_somebody_to_wait(world: World) -> None:
    world.chunks.answer = ResourceExhausted("full", reason=ErrorReason.ERROR_REASON_CHUNK_STORAGE_FULL)
    part = hub({}, chunk=ChunkPlace("m", 0, 2, is_array=False))
    with pytest.raises(ResourceExhausted):
        await world.intake.take_messages(origin(None), [part], received_us=NOW)
    taken = await world.messages.take(
        "acme", [part], {"hub": HUB}, window=TimeWindow("all time", 0, 2**62), now_us=NOW
    )
    assert [refusal.reason for refusal in taken.refusals[0]] == [ErrorReason.ERROR_REASON_CHUNK_STORAGE_FULL]
    assert taken.chunks == []


@given(objects=OBJECTS, data=st.data())
def test_a_message_is_the_same_however_it_was_cut(
    objects: list[tuple[int, float]], data: st.DataObject
) -> None:
    content = [{"id": number, "x": value} for number, value in objects]
    as_array = data.draw(st.booleans())
    whole: Any = content if as_array else json.dumps(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    payloads = {}
    for index in data.draw(st.permutations(range(len(parts)))):
        envelope = {"messageId": "m", "index": index, "total": len(parts), "payload": parts[index]}
        payloads[index] = unpacked(envelope).payload
    message = ChunkedMessage(len(parts), as_array, None, received=len(parts), bytes=0)
    chunks = Chunks(("acme", "gw", "m"), message, "p", "mqtt", NOW, payloads)
    assert (chunks.is_whole, chunks.missing) == (True, [])
    assert json.loads(chunks.payload) == content
