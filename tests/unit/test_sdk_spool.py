"""The spool against a plain model: appends, trims, drops, and crashes at any byte of a write."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2
from twinmesh_client import disk
from twinmesh_client.errors import SpoolDamaged, SpoolError, SpoolFull, SpoolInUse
from twinmesh_client.records import HEADER_BYTES
from twinmesh_client.spool import Spool

_MAX_BYTES = 8 * 400  # A segment is over at 400 bytes.


def opened(folder: Path, *, name: str = "line-4", max_bytes: int = _MAX_BYTES) -> Spool:
    return Spool(folder, name=name, max_bytes=max_bytes)


@contextmanager
def spool_in(folder: Path, **options: Any) -> Iterator[Spool]:
    spool = opened(folder, **options)
    try:
        yield spool
    finally:
        spool.close()


def series(alias: int) -> ingest_pb2.SeriesDef:
    return ingest_pb2.SeriesDef(
        alias=alias, device_id=f"pump-{alias}", metric="flow", kind=value_pb2.VALUE_KIND_DOUBLE
    )


def crash(spool: Spool) -> None:
    """Let go of a spool as a killed process does: nothing is saved."""
    for descriptor in (spool._lock, spool._active):
        if descriptor is not None:
            os.close(descriptor)


def last_segment(folder: Path) -> Path:
    return max(folder.glob("batches-*.log"))


def numbers(spool: Spool) -> list[int]:
    return [record.number for record in spool.read(spool.first_sequence, max_bytes=1 << 30)]


class SpoolModel(RuleBasedStateMachine):
    """What a dictionary of batches would do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.spool = opened(self.folder)
        self.writer_id = self.spool.writer_id
        self.held: dict[int, tuple[bytes, int]] = {}
        self.last = 0
        self.durable = 0
        self.defined = 0

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)

    @rule(payload=st.binary(max_size=150), samples=st.integers(1, 9))
    def append(self, payload: bytes, samples: int) -> None:
        size = sum(path.stat().st_size for path in self.folder.glob("batches-*.log"))
        try:
            self.spool.append(payload, samples=samples)
        except SpoolFull:
            assert size + HEADER_BYTES + len(payload) > _MAX_BYTES
        else:
            assert size + HEADER_BYTES + len(payload) <= _MAX_BYTES
            self.last += 1
            self.held[self.last] = (payload, samples)

    @rule(count=st.integers(1, 3))
    def define(self, count: int) -> None:
        self.spool.define([series(self.defined + place) for place in range(count)])
        self.defined += count

    @precondition(lambda self: self.last > self.durable)
    @rule(data=st.data(), unsaved=st.sampled_from([0, 2, 1000]))
    def trim(self, data: st.DataObject, unsaved: int) -> None:
        through = data.draw(st.integers(self.durable + 1, self.last))
        covered = [number for number in self.held if number <= through]
        assert self.spool.trim(through, unsaved=unsaved) == sum(self.held[number][1] for number in covered)
        for number in covered:
            del self.held[number]
        self.durable = through
        assert self.durable - self.spool.saved_through <= unsaved

    @rule()
    def drop_oldest(self) -> None:
        before = dict(self.held)
        dropped = self.spool.drop_oldest()
        first = self.spool.first_sequence
        gone = [number for number in before if number < first]
        assert bool(gone) == bool(before)
        assert dropped == sum(before[number][1] for number in gone)
        for number in gone:
            del self.held[number]

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.spool = opened(self.folder)
        assert self.spool.durable_through == self.durable

    @rule(torn=st.binary(max_size=60))
    def crash(self, torn: bytes) -> None:
        """The process dies in the middle of a write; what it knew of acknowledgements may be lost."""
        crash(self.spool)
        if list(self.folder.glob("batches-*.log")):
            with last_segment(self.folder).open("ab") as file:
                file.write(torn)
        self.spool = opened(self.folder)
        # Batches that were acknowledged and not trimmed are held again.
        assert self.spool.durable_through <= self.durable
        forgotten = self.durable
        self.durable = self.spool.durable_through
        assert not self.held or min(self.held) > forgotten or forgotten == self.durable
        for record in self.spool.read(self.durable + 1, max_bytes=1 << 30):
            self.held.setdefault(record.number, (record.payload, record.samples))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        found = self.spool.read(self.spool.first_sequence, max_bytes=1 << 30)
        assert {record.number: (record.payload, record.samples) for record in found} == self.held
        assert self.spool.next_sequence == self.last + 1
        assert self.spool.first_sequence == min(self.held, default=self.last + 1)
        backlog = self.spool.backlog
        assert backlog.batches == len(self.held)
        assert backlog.size == sum(HEADER_BYTES + len(payload) for payload, _ in self.held.values())
        assert (backlog.oldest_us is None) == (not self.held)
        assert list(self.spool.definitions) == [series(alias) for alias in range(self.defined)]
        assert self.spool.writer_id == self.writer_id


TestSpoolModel = SpoolModel.TestCase


@given(kept=st.integers(0, 3), lost=st.binary(min_size=1, max_size=80), data=st.data())
def test_a_write_that_a_crash_cut_anywhere_is_cut_off(kept: int, lost: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        with spool_in(folder, max_bytes=1 << 20) as spool:
            for number in range(kept):
                spool.append(b"%d" % number, samples=1)
            spool.append(lost, samples=1)
        path = last_segment(folder)
        whole = path.read_bytes()
        size = HEADER_BYTES + len(lost)
        cut = data.draw(st.integers(1, size))
        # Either the file was not lengthened yet, or its new blocks hold something else.
        rest = b"" if data.draw(st.booleans()) else bytes(cut)
        torn = whole[:-cut] + rest
        path.write_bytes(torn)
        with spool_in(folder, max_bytes=1 << 20) as spool:
            complete = torn == whole
            assert numbers(spool) == [*range(1, kept + 1 + complete)]
            spool.append(b"next", samples=1)
            assert spool.read(kept + 1 + complete, max_bytes=1)[0].payload == b"next"
        with spool_in(folder, max_bytes=1 << 20) as spool:
            assert len(numbers(spool)) == kept + 1 + complete


@given(data=st.data())
def test_a_damaged_record_with_others_behind_it_is_for_a_person_to_decide(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        with spool_in(folder, max_bytes=1 << 20) as spool:
            for number in range(4):
                spool.append(bytes([number] * 50), samples=1)
        path = last_segment(folder)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, 3 * (HEADER_BYTES + 50) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(SpoolDamaged) as caught:
            opened(folder)
        record = place // (HEADER_BYTES + 50) * (HEADER_BYTES + 50)
        assert (caught.value.path, caught.value.offset) == (path, record)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == content, "nothing was cut off"


def test_any_segment_but_the_last_must_be_whole(tmp_path: Path) -> None:
    with spool_in(tmp_path) as spool:
        for _ in range(20):
            spool.append(bytes(100), samples=1)
    first = min(tmp_path.glob("batches-*.log"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(SpoolDamaged):
        opened(tmp_path)
    first.unlink()
    with spool_in(tmp_path) as spool:
        assert spool.first_sequence > 1, "as if the oldest were dropped"
    sorted(tmp_path.glob("batches-*.log"))[1].unlink()
    with pytest.raises(SpoolDamaged, match="is missing"):
        opened(tmp_path)


def test_a_lost_end_below_what_is_durable_does_not_give_numbers_out_again(tmp_path: Path) -> None:
    with spool_in(tmp_path) as spool:
        for _ in range(3):
            spool.append(b"abc", samples=1)
        spool.trim(3, unsaved=0)
    path = last_segment(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    for expected in (4, 5):
        with spool_in(tmp_path) as spool:
            assert spool.next_sequence == expected
            spool.append(b"def", samples=1)
    with spool_in(tmp_path) as spool:
        assert numbers(spool) == [4, 5]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_definitions_that_batches_rely_on_do_not_go_missing_without_a_word(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with spool_in(tmp_path) as spool:
        for alias in range(2):
            spool.define([series(alias)])
            spool.append(b"abc", samples=1)
    path = tmp_path / "series.log"
    damage(path)
    left = path.read_bytes() if path.exists() else None
    with pytest.raises(SpoolDamaged, match="batches rely on 2") as caught:
        opened(tmp_path)
    assert caught.value.path == path
    assert left == (path.read_bytes() if path.exists() else None), "nothing was cut off"


@given(cut=st.integers(1, 30), is_zeroed=st.booleans())
def test_a_definition_that_a_crash_cut_anywhere_is_cut_off(cut: int, is_zeroed: bool) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        with spool_in(folder) as spool:
            spool.define([series(0)])
            spool.append(b"abc", samples=1)
            spool.define([series(1)])
        path = folder / "series.log"
        path.write_bytes(path.read_bytes()[:-cut] + (bytes(cut) if is_zeroed else b""))
        with spool_in(folder) as spool:
            assert spool.definitions == [series(0)]
            spool.define([series(1)])
            spool.append(b"def", samples=1)
        with spool_in(folder) as spool:
            assert spool.definitions == [series(0), series(1)]


def test_reading_in_parts(tmp_path: Path) -> None:
    with spool_in(tmp_path, max_bytes=1 << 20) as spool:
        for _ in range(5):
            spool.append(bytes(100), samples=1)
        each = HEADER_BYTES + 100
        assert [record.number for record in spool.read(2, max_bytes=2 * each)] == [2, 3]
        assert [record.number for record in spool.read(2, max_bytes=1)] == [2]
        assert spool.read(6, max_bytes=1) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with spool_in(tmp_path), pytest.raises(SpoolInUse):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_spool_belongs_to_one_gateway(tmp_path: Path) -> None:
    with spool_in(tmp_path) as spool:
        assert spool.writer_id.startswith("line-4:")
        spool.append(b"", samples=1)
    with pytest.raises(SpoolError, match="line-4"):
        opened(tmp_path, name="line-5")
    (tmp_path / "writer.json").unlink()
    with pytest.raises(SpoolDamaged):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["writer.json", "durable.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2, "writer_id": 7, "durable_through": -1}'])
def test_small_files_that_are_something_else(tmp_path: Path, name: str, content: str) -> None:
    with spool_in(tmp_path) as spool:
        spool.append(b"", samples=1)
        spool.trim(1, unsaved=0)
    (tmp_path / name).write_text(content)
    with pytest.raises(SpoolDamaged, match=name):
        opened(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    with spool_in(tmp_path, max_bytes=1 << 20) as spool:
        spool.append(b"first", samples=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, failing, partly(getattr(os, failing), errno.ENOSPC))
            with pytest.raises(SpoolFull):
                spool.append(b"second" * 100, samples=1)
        assert spool.next_sequence == 2
        spool.append(b"third", samples=1)
    with spool_in(tmp_path, max_bytes=1 << 20) as spool:
        assert [record.payload for record in spool.read(1, max_bytes=1 << 20)] == [b"first", b"third"]


def test_a_failing_disk_is_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spool_in(tmp_path) as spool:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", partly(os.fsync, errno.EIO))
            with pytest.raises(SpoolError) as caught:
                spool.append(b"second", samples=1)
        assert not isinstance(caught.value, SpoolFull)


def test_a_full_disk_does_not_keep_trimming_from_making_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with spool_in(tmp_path) as spool:
        for _ in range(12):
            spool.append(bytes(100), samples=1)
        files = len(list(tmp_path.glob("batches-*.log")))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", partly(os.fsync, errno.ENOSPC))
            assert spool.trim(11, unsaved=0) == 11
        assert len(list(tmp_path.glob("batches-*.log"))) < files
    with spool_in(tmp_path) as spool:
        assert numbers(spool) == [12]


def test_what_is_durable_is_saved_before_its_batches_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    for _ in range(12):
        spool.append(bytes(100), samples=1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", partly(Path.unlink, errno.EIO))
        with pytest.raises(SpoolError):
            spool.trim(11, unsaved=1000)
    crash(spool)
    with spool_in(tmp_path) as spool:
        assert spool.durable_through == 11


@pytest.mark.parametrize("batches", [1, 12])
def test_a_drop_is_seen_when_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """Empty batches take the place of those that are seen to be dropped: they must not come back."""
    seen: list[tuple[int, int]] = []

    def sync(folder: Path) -> None:
        seen.append((spool.first_sequence, spool.next_sequence))

    with spool_in(tmp_path) as spool:
        for _ in range(batches):
            spool.append(bytes(100), samples=1)
        monkeypatch.setattr(disk, "sync_folder", sync)
        dropped = spool.drop_oldest()
        assert set(seen) == {(1, batches + 1)}
        assert (spool.first_sequence, spool.next_sequence) == (1 + dropped, batches + 1)


def partly(real: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Return a system call that does a part of its work and fails the next time."""
    calls = 0

    def call(descriptor: int, *data: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1 and data:
            return real(descriptor, data[0][:10])
        raise OSError(number, os.strerror(number))

    return call
