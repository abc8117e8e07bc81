"""What is announced is read back, in parts that the bus takes; what is no announcement is refused."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from telemetry_store.announcement import decode, encode
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.series import Point, Value
from tests.unit.latest import Latest, columns, samples
from twinmesh.ingest.v1.commit_announcement_pb2 import CommitAnnouncement, LatestSamples
from twinmesh.type.v1 import value_pb2

_COORDINATES = st.floats(-90, 90)
_VALUES: st.SearchStrategy[Value] = st.one_of(
    st.floats(allow_nan=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(max_size=40),
    st.builds(Point, _COORDINATES, _COORDINATES, st.none() | _COORDINATES),
)
_NUMBERS = st.builds(
    CommitNumbers, st.integers(1, 2**31 - 1), st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1)
)
_LATEST = st.lists(
    st.builds(
        Latest,
        st.sampled_from(["demo", "other", "t" * 250, "ü" * 100]),
        st.integers(1, 2**31 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.just(0),
        _VALUES,
    ),
    max_size=40,
)


def grouped(latest: Sequence[Latest]) -> list[tuple[str, KindColumns]]:
    return [(one.tenant, one.samples) for one in columns(latest)]


@given(_NUMBERS, _LATEST, st.integers(300, 2_000))
def test_what_is_announced_is_read_back(numbers: CommitNumbers, latest: list[Latest], max_bytes: int) -> None:
    payloads = encode(numbers, grouped(latest), traceparent="00-a-b-01", max_bytes=max_bytes)

    read = [decode(payload) for payload in payloads]

    assert [(one.part, one.parts, one.traceparent) for one in read] == [
        (part, len(payloads), "00-a-b-01") for part in range(len(payloads))
    ]
    assert {(one.instance, one.commit_no, one.order_no) for one in read} == {
        (numbers.instance, numbers.commit_no, numbers.order_no)
    }
    found = samples(columns for one in read for columns in one.latest)
    expected = [
        Latest(
            one.tenant,
            one.series_id,
            one.time_us,
            numbers.order_no,
            one.value,
            numbers.instance,
            numbers.commit_no,
        )
        for one in samples(columns(latest))
    ]
    assert found == expected
    for payload, one in zip(payloads, read, strict=True):
        assert len(payload) <= max_bytes or sum(map(len, one.latest)) == 1


def test_a_commit_that_stored_nothing_is_announced() -> None:
    (payload,) = encode(CommitNumbers(1, 2, 3), [], traceparent="", max_bytes=1_000)
    read = decode(payload)
    assert (read.commit_no, read.part, read.parts, read.latest) == (2, 0, 1, [])


def test_parts_are_filled() -> None:
    latest = [Latest("demo", number, number, 0, float(number)) for number in range(1, 10_001)]
    payloads = encode(CommitNumbers(1, 2, 3), grouped(latest), traceparent="", max_bytes=64_000)
    # 20 bytes a sample.
    assert len(payloads) == 4


def test_parts_have_room_for_a_long_tenant() -> None:
    latest = [Latest("ü" * 125, number, number, 0, float(number)) for number in range(1, 1_001)]
    payloads = encode(CommitNumbers(1, 2, 3), grouped(latest), traceparent="", max_bytes=1_000)
    assert max(map(len, payloads)) <= 1_000


def test_parts_have_room_for_long_characters() -> None:
    latest = [Latest("demo", number, number, 0, "🚰" * 20) for number in range(1, 1_001)]
    payloads = encode(CommitNumbers(1, 2, 3), grouped(latest), traceparent="", max_bytes=1_000)
    assert max(map(len, payloads)) <= 1_000


def _announcement(**changes: object) -> bytes:
    group = LatestSamples(
        tenant="demo",
        kind=value_pb2.VALUE_KIND_DOUBLE,
        series=b"\1\0\0\0",
        times=b"\0" * 8,
        numbers=b"\0" * 8,
    )
    for name, value in changes.pop("group", {}).items():  # type: ignore[attr-defined]
        setattr(group, name, value)
    whole = {"instance": 1, "commit_no": 1, "order_no": 1, "part": 0, "parts": 1, **changes}
    return CommitAnnouncement(**whole, latest=[group]).SerializeToString()  # type: ignore[arg-type]


def test_the_announcement_of_these_tests_is_one() -> None:
    assert len(decode(_announcement()).latest) == 1


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xff", id="no message"),
        pytest.param(b"", id="nothing"),
        pytest.param(_announcement(instance=0), id="no instance"),
        pytest.param(_announcement(instance=2**31), id="instance too large"),
        pytest.param(_announcement(commit_no=0), id="no commit"),
        pytest.param(_announcement(order_no=2**63), id="order too large"),
        pytest.param(_announcement(part=1), id="part beyond the last"),
        pytest.param(_announcement(group={"kind": 9}), id="unknown kind"),
        pytest.param(_announcement(group={"kind": Kind.POINT}), id="a third of a point"),
        pytest.param(_announcement(group={"times": b""}), id="lengths differ"),
        pytest.param(_announcement(group={"times": b"\0" * 7}), id="half a time"),
        pytest.param(_announcement(group={"series": b"\0" * 4}), id="series 0"),
        pytest.param(_announcement(group={"series": b"\xff" * 4}), id="series too large"),
        pytest.param(_announcement(group={"kind": Kind.STRING}), id="no strings"),
    ],
)
def test_what_is_no_announcement_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_announcement_or_refused(payload: bytes) -> None:
    try:
        decode(payload)
    except ValueError:
        return
