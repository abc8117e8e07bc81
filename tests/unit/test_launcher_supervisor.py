import asyncio
import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshkit.embedded import ChildProcess, Part, PartFailedError
from meshkit.embedded.logs import LOG_BYTES
from meshkit.embedded.part import until_ready
from meshkit.testing.mesh import eventually
from twinmesh_cli.state import PartState
from twinmesh_cli.supervisor import Supervised, Supervisor


class _Program(Part):
    """A real process that is ready once it has written so; `broken` decides whether it fails to.

    Before that it writes `lines` other lines of ten bytes.
    """

    def __init__(self, name: str, folder: Path, ended: list[str] | None = None, *, lines: int = 0) -> None:
        super().__init__()
        self.name = name
        self.broken = folder / f"{name}.broken"
        self.log_path = folder / f"{name}.log"
        self._ended = ended
        self._lines = lines

    def is_ready(self) -> bool:
        return self._process is not None and "ready" in self._process.log_tail()

    def _starting(self) -> Iterator[None]:
        script = (
            "import pathlib, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            f"if pathlib.Path({str(self.broken)!r}).exists(): sys.exit('no luck today')\n"
            f"sys.stdout.write('a line...\\n' * {self._lines})\n"
            "print('ready', flush=True); time.sleep(600)"
        )
        self._process = ChildProcess(command=[sys.executable, "-c", script], log_path=self.log_path)
        self._process.spawn()
        yield from until_ready(self._process, self.name, self.is_ready, seconds=20)

    def _stopping(self) -> Iterator[None]:
        yield from super()._stopping()
        if self._ended is not None:
            self._ended.append(self.name)


class _Watch:
    """Waits for what the supervisor tells."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, _: Supervised) -> None:
        self._wake()

    def tell(self, text: str) -> None:
        self.told.append(text)
        self._wake()

    async def until_told(self, text: str) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: any(text in each for each in self.told))

    def _wake(self) -> None:
        task = asyncio.ensure_future(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    part = _Program("part", tmp_path)
    await supervisor.start([part])
    try:
        assert part.process is not None
        first = part.process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        await watch.until_told("part is back")

        assert part.process.pid not in {None, first}
        assert watch.told[0].startswith("part was ended by signal 9")
        assert [(each.state, each.restarts) for each in supervisor.supervised] == [(PartState.READY, 1)]
    finally:
        await supervisor.stop()


async def test_a_part_that_is_asked_to_end_again_and_again_is_back_as_soon_each_time(tmp_path: Path) -> None:
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    part = _Program("part", tmp_path)
    await supervisor.start([part])
    try:
        for _ in range(3):
            watch.told.clear()
            assert part.process is not None
            part.process.signal(signal.SIGTERM)
            await watch.until_told("part is back")
            assert watch.told[0] == "part ended with code 0; it is started again in 0.2 s"
    finally:
        await supervisor.stop()


async def test_a_part_that_cannot_come_back_is_tried_until_it_can(tmp_path: Path) -> None:
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    part = _Program("part", tmp_path)
    await supervisor.start([part])
    try:
        part.broken.touch()
        assert part.process is not None
        assert part.process.pid is not None
        os.kill(part.process.pid, signal.SIGKILL)
        await watch.until_told("no luck today")
        part.broken.unlink()

        await watch.until_told("part is back")
    finally:
        await supervisor.stop()


async def test_a_full_disk_ends_no_supervision(tmp_path: Path) -> None:
    watch = _Watch()
    full = False

    def changed(each: Supervised) -> None:
        watch.changed(each)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(changed=changed, tell=watch.tell)
    part = _Program("part", tmp_path)
    await supervisor.start([part])
    try:
        full = True
        assert part.process is not None
        assert part.process.pid is not None
        part.log_path = tmp_path / "absent" / "part.log"  # Cannot be opened: its folder is a file.
        part.log_path.parent.touch()
        os.kill(part.process.pid, signal.SIGKILL)
        await watch.until_told("tried again")
        part.log_path.parent.unlink()

        await watch.until_told("part is back")
    finally:
        await supervisor.stop()
    assert not part.running


async def test_a_first_start_that_fails_carries_the_last_log_lines(tmp_path: Path) -> None:
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    good, bad = _Program("good", tmp_path), _Program("bad", tmp_path)
    bad.broken.touch()
    try:
        with pytest.raises(PartFailedError, match="no luck today") as failure:
            await supervisor.start([good, bad])
        assert failure.value.part == "bad"
    finally:
        await supervisor.stop()
    assert not good.running


async def test_the_log_of_a_part_that_runs_does_not_grow_without_end(tmp_path: Path) -> None:
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    part = _Program("part", tmp_path, lines=LOG_BYTES // 10)
    await supervisor.start([part])
    try:
        await asyncio.to_thread(
            eventually, lambda: (tmp_path / "part.log").stat().st_size == 0, "the log moved aside"
        )

        assert (tmp_path / "part.log.1").stat().st_size > LOG_BYTES
        assert part.running
    finally:
        await supervisor.stop()


async def test_stages_stop_in_reverse_order(tmp_path: Path) -> None:
    ended: list[str] = []
    watch = _Watch()
    supervisor = Supervisor(changed=watch.changed, tell=watch.tell)
    for name in ("database", "service", "gateway"):
        await supervisor.start([_Program(name, tmp_path, ended)])

    await supervisor.stop()

    assert ended == ["gateway", "service", "database"]
    assert {each.state for each in supervisor.supervised} == {PartState.STOPPED}
