"""Metrics of a device that are looked at together, and what is remembered of it."""

import numpy as np
import pytest

from ingest_svc import device_states
from ingest_svc.device_states import DeviceStates
from ingest_svc.profile import JointRules, QualityRules
from ingest_svc.quality import judge
from ingest_svc.series_states import KnownSeries, SeriesStates
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.merge import merge
from telemetry_store.quality import unpack

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
TOGETHER = JointRules(("flow", "pressure"), warm_up=160)
# Each by itself is never an anomaly.
RULES = QualityRules(anomaly_threshold=float("inf"), joint=TOGETHER)
DEVICES = ("pump-1", "pump-2")


def known(saved: dict[str, bytes] | None = None) -> SeriesStates:
    """Return two pumps' series: flow and pressure of the first are 1 and 2, of the second 3 and 4."""
    states = SeriesStates()
    states.know(
        [
            KnownSeries(
                1 + 2 * place + column, "acme", device, metric, RULES, None, (saved or {}).get(device)
            )
            for place, device in enumerate(DEVICES)
            for column, metric in enumerate(TOGETHER.metrics)
        ]
    )
    return states


def rows(first: int, count: int, *, broken: tuple[int, ...] = ()) -> KindColumns:
    """Return rows of both pumps: pressure follows flow, but for pump-1 in seconds that are broken."""
    rng = np.random.default_rng(first)
    seconds = np.arange(first, first + count)
    flow = np.sin(seconds / 5) + 0.05 * rng.standard_normal(count)
    pressure = 2 * flow + 0.05 * rng.standard_normal(count)
    odd = pressure.copy()
    odd[np.isin(seconds, broken)] *= -1
    odd[np.isin(seconds, broken)] += 1
    times = NOW + seconds * SECOND
    return KindColumns(
        Kind.DOUBLE,
        np.repeat(np.arange(1, 5, dtype=np.int32), count),
        np.tile(times, 4),
        np.concatenate([flow, odd, flow, pressure]),
    )


def anomalies(states: SeriesStates, columns: KindColumns) -> dict[int, set[int]]:
    """Return the seconds of anomalies by series."""
    runs = merge([columns])
    slots = states.meet(runs.series)
    codes = judge(runs, slots, states, received_us=np.zeros(len(runs.series), np.int64))
    series = np.repeat(runs.series, runs.lengths)
    found: dict[int, set[int]] = {}
    for place in np.flatnonzero(unpack(codes).anomalous).tolist():
        found.setdefault(int(series[place]), set()).add((int(runs.times[place]) - NOW) // SECOND)
    return found


def test_samples_of_a_time_that_does_not_fit_are_anomalies_of_all_metrics() -> None:
    states = known()
    assert anomalies(states, rows(0, 400)) == {}
    found = anomalies(states, rows(400, 100, broken=tuple(range(440, 460))))
    assert found[1] == found[2]  # The samples of a time stand and fall together …
    assert {450, 455} <= found[1]
    assert not found.keys() & {3, 4}  # … and those of another device have nothing to do with them.


def test_rows_may_come_in_pieces() -> None:
    states = known()
    for first in range(0, 400, 7):
        anomalies(states, rows(first, 7))
    found = anomalies(states, rows(406, 60, broken=tuple(range(440, 460))))
    assert 450 in found[1]


def test_another_process_goes_on() -> None:
    states = known()
    anomalies(states, rows(0, 400))
    saved = {each.subject: each.state for each in states.devices.take_changed(1 << 20)}
    assert saved.keys() == set(DEVICES)
    assert states.devices.take_changed(1 << 20) == []
    elsewhere = known(saved)
    assert 450 in anomalies(elsewhere, rows(400, 100, broken=tuple(range(440, 460))))[1]
    # What warms up finds nothing.
    assert anomalies(known(), rows(400, 100, broken=tuple(range(440, 460)))) == {}


def test_no_more_is_saved_at_once_than_fits() -> None:
    states = known()
    anomalies(states, rows(0, 10))
    sizes = [len(states.devices.take_changed(8 * 40)) for _ in range(3)]
    assert sizes == [1, 1, 0]


def one_row(
    devices: DeviceStates, device: str, rules: JointRules, seconds: int, *, metrics: tuple[int, ...] = (0, 1)
) -> None:
    count = len(metrics)
    place = devices.place(("acme", device), rules, None)
    assert place is not None
    group, slot = place
    devices.judge(
        group,
        np.full(count, slot, np.int32),
        np.array(metrics, np.int16),
        np.full(count, NOW + seconds * SECOND),
        np.ones(count),
    )


def test_a_device_whose_rules_change_is_saved_once() -> None:
    devices = DeviceStates()
    for seconds, warm_up in enumerate((160, 320)):
        one_row(devices, "pump-1", JointRules(("flow", "pressure"), warm_up), seconds)
    (saved,) = devices.take_changed(1 << 20)  # Twice in one statement would be refused.
    assert saved.time_us == NOW + SECOND
    assert devices.take_changed(1 << 20) == []


def test_all_devices_have_their_turn_to_be_saved() -> None:
    devices = DeviceStates()
    saved = []
    for seconds in range(4):
        for device, warm_up in (("pump-1", 160), ("pump-2", 160), ("fan-1", 320), ("fan-2", 320)):
            one_row(devices, device, JointRules(("flow", "pressure"), warm_up), seconds)
        saved += [found.subject for found in devices.take_changed(2 * 8 * 31)]
    assert sorted(saved) == ["fan-1", "fan-1", "fan-2", "fan-2", "pump-1", "pump-1", "pump-2", "pump-2"]


def test_a_state_of_another_warm_up_is_none() -> None:
    devices = DeviceStates()
    one_row(devices, "pump-1", JointRules(("flow", "pressure"), 160), 9)
    (saved,) = devices.take_changed(1 << 20)
    longer = JointRules(("flow", "pressure"), 320)
    others = DeviceStates()
    others.place(("acme", "pump-1"), longer, saved.state)
    one_row(others, "pump-1", longer, 0)
    (fresh,) = others.take_changed(1 << 20)
    assert fresh.time_us == NOW


def test_a_device_that_never_reports_one_of_its_metrics_goes_on_elsewhere() -> None:
    devices, others = DeviceStates(), DeviceStates()
    one_row(devices, "pump-1", TOGETHER, 9, metrics=(0,))
    (saved,) = devices.take_changed(1 << 20)
    others.place(("acme", "pump-1"), TOGETHER, saved.state)
    one_row(others, "pump-1", TOGETHER, 0, metrics=(0,))
    (same,) = others.take_changed(1 << 20)  # What came late changes nothing.
    assert same == saved


@pytest.mark.parametrize("state", [b"", b"x" * 100])
def test_a_state_of_another_form_is_none(state: bytes) -> None:
    states = known(dict.fromkeys(DEVICES, state))
    assert anomalies(states, rows(0, 400)) == {}


def test_a_state_of_other_metrics_is_none() -> None:
    states = known()
    anomalies(states, rows(0, 400))
    (saved, _) = states.devices.take_changed(1 << 20)
    others = DeviceStates()
    swapped = JointRules(("pressure", "flow"), warm_up=160)
    others.place(("acme", "pump-1"), swapped, saved.state)
    one = np.zeros(1, np.int32)
    others.judge(0, one, one.astype(np.int16), np.array([NOW]), np.ones(1))
    (fresh,) = others.take_changed(1 << 20)
    assert fresh.time_us == NOW


def test_there_is_room_for_so_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_states, "_MOST_BYTES", 2 * 2 * 8 * 31)
    devices = DeviceStates()
    placed = [devices.place(("acme", f"pump-{number}"), TOGETHER, None) for number in range(4)]
    assert placed == [(0, 0), (0, 1), None, None]
    assert devices.place(("acme", "pump-1"), TOGETHER, None) == (0, 1)
    assert devices.knows(("acme", "pump-1"), TOGETHER)
    assert not devices.knows(("acme", "pump-2"), TOGETHER)
    assert not devices.knows(("acme", "pump-1"), JointRules(("a", "b", "c")))
