"""What the launcher relies on from the machine: ports, child processes, identities, the lock."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from meshkit.embedded import ChildProcess, bound_log, free_ports, is_port_free
from twinmesh_cli.home import Home, HomeBusyError
from twinmesh_cli.state import LauncherState, PartRecord, PartState, ProcessIdentity, end_processes

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
_STUBBORN = [
    sys.executable,
    "-c",
    (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
        "time.sleep(600)"
    ),
]


def _until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def _drive(process: ChildProcess) -> None:
    for _ in process.stopping():
        time.sleep(0.01)


def test_free_ports_are_different_and_nobody_listens_on_them() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert all(is_port_free(port) for port in ports)


def test_a_port_with_a_listener_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_port_free(listener.getsockname()[1])


def test_a_child_writes_its_log_and_ends_when_told(tmp_path: Path) -> None:
    process = ChildProcess(
        command=[sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"],
        log_path=tmp_path / "logs" / "child.log",
    )
    process.spawn()
    _until(lambda: "here" in process.log_tail())

    _drive(process)

    assert process.pid is None
    assert process.exit_code == -signal.SIGTERM


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    process = ChildProcess(
        command=_STUBBORN, log_path=tmp_path / "child.log", stop_signals=((signal.SIGTERM, 0.2),)
    )
    process.spawn()
    _until(lambda: "deaf" in process.log_tail())

    _drive(process)

    assert process.exit_code == -signal.SIGKILL


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    process = ChildProcess(command=["/nowhere/at/all"], log_path=tmp_path / "child.log")
    process.spawn()
    _until(lambda: process.exit_code is not None)

    assert "cannot run /nowhere/at/all" in process.log_tail()


def test_the_tail_is_of_this_run_only(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("an earlier run\n")
    process = ChildProcess(command=[sys.executable, "-c", "print('this run')"], log_path=log)
    process.spawn()
    _until(lambda: process.exit_code is not None)

    assert process.log_tail() == "this run"
    assert log.read_text().startswith("an earlier run")


def test_a_long_log_moves_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log, moved = tmp_path / "child.log", tmp_path / "child.log.1"
    counts = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.001)"
    process = ChildProcess(command=[sys.executable, "-c", counts], log_path=log)
    process.spawn()
    try:
        _until(lambda: log.stat().st_size > 100)
        assert not bound_log(log, limit=10**6)

        assert bound_log(log, limit=100)

        _until(lambda: log.stat().st_size > 0)
    finally:
        _drive(process)
    before, after = (list(map(int, path.read_text().split())) for path in (moved, log))
    assert before == list(range(len(before)))
    assert after == list(range(after[0], after[0] + len(after)))
    assert after[0] > before[-1]


def test_a_log_that_is_not_there_is_not_long(tmp_path: Path) -> None:
    assert not bound_log(tmp_path / "none.log", limit=0)


def test_a_log_without_room_for_its_copy_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, moved = tmp_path / "child.log", tmp_path / "child.log.1"
    log.write_text("a line\n")
    moved.write_text("an older line\n")

    def fill(_: Path, target: Path) -> None:
        target.write_text("a l")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)

    assert not bound_log(log, limit=1)
    assert log.read_text() == "a line\n"
    assert not moved.exists()


def test_children_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from meshkit.embedded import ChildProcess\n"
        f"child = ChildProcess(command={_SLEEP!r}, log_path=Path({str(tmp_path / 'child.log')!r}))\n"
        "child.spawn(); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        child = psutil.Process(pid)
        _until(lambda: child.cmdline() == _SLEEP)

        launcher.kill()

        _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_mark_of_death_survives_a_change_of_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can change to another user")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from meshkit.embedded import ChildProcess, unprivileged_account\n"
        "child = ChildProcess(command=['/bin/sleep', '600'], account=unprivileged_account(),\n"
        f"    log_path=Path({str(tmp_path / 'child.log')!r}))\n"
        "child.spawn(); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
        _until(lambda: child.cmdline() == ["/bin/sleep", "600"])
        assert child.uids().real != 0

        launcher.kill()

        _until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def _record(identity: ProcessIdentity | None) -> PartRecord:
    return PartRecord(
        name="part",
        state=PartState.READY,
        port=1,
        since=0.0,
        restarts=0,
        log="",
        stop_signal=int(signal.SIGTERM),
        identity=identity,
    )


def _state(identity: ProcessIdentity | None) -> LauncherState:
    return LauncherState(
        launcher=ProcessIdentity.own(), gateway_url="http://here", parts=(_record(identity),), ready=True
    )


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = _state(ProcessIdentity.own())

    state.write(path)

    assert LauncherState.read(path) == state
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"launcher": 1}'])
def test_a_damaged_state_is_no_state(text: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)

    assert LauncherState.read(path) is None


def test_leftovers_are_ended() -> None:
    with subprocess.Popen(_SLEEP) as left:
        identity = ProcessIdentity.of(left.pid, _SLEEP)
        assert identity is not None
        # For a moment a process that begins has no command line yet.
        while identity.process() is None:
            assert left.poll() is None

        ended = end_processes(_state(identity))

        assert ended == ["part"]
        assert left.wait(timeout=10) == -signal.SIGTERM


def test_another_process_with_the_same_id_is_left_alone() -> None:
    with subprocess.Popen(_SLEEP) as stranger:
        try:
            real = ProcessIdentity.of(stranger.pid, _SLEEP)
            assert real is not None
            earlier = ProcessIdentity(pid=real.pid, started=real.started - 60, command=real.command)
            other_command = ProcessIdentity(
                pid=real.pid, started=real.started, command=("postgres", "-D", "x")
            )

            assert end_processes(_state(earlier)) == []
            assert end_processes(_state(other_command)) == []
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_one_launcher_has_a_home_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        assert Home(tmp_path).is_locked()
        with pytest.raises(HomeBusyError), Home(tmp_path).locked():
            pass

    assert not home.is_locked()


def test_the_mesh_secret_stays_and_is_private(tmp_path: Path) -> None:
    first = Home(tmp_path).mesh_secret()

    assert Home(tmp_path).mesh_secret() == first
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "secrets" / "mesh").stat().st_mode & 0o777 == 0o600
