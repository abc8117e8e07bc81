"""Where the writer prepares rows: small groups at once, large ones in a thread."""

import asyncio
import threading
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from telemetry_store.batch import Batch
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.merge import Runs
from telemetry_store.pacing import BULK_SAMPLES
from telemetry_store.quality import PERFECT, Codes, constant
from telemetry_store.requests import WriteRequest
from telemetry_store.writer import TelemetryWriter


def batch(samples: int) -> Batch:
    times = np.arange(samples, dtype=np.int64)
    columns = KindColumns(Kind.INT, np.ones(samples, np.int32), times, times)
    return Batch(WriteRequest("demo", "user:ada", None, b"." * 32, [columns], b"stored", b"refused"))


async def test_the_event_loop_never_waits_for_a_large_group_to_be_judged() -> None:
    begun, go_on = threading.Event(), threading.Event()
    judged: list[tuple[int, str]] = []

    def judge(runs: Runs, received_us: npt.NDArray[np.int64]) -> Codes:
        judged.append((len(runs.times), threading.current_thread().name))
        if len(runs.times) >= BULK_SAMPLES:
            begun.set()
            assert go_on.wait(10)
        return constant(PERFECT, len(runs.times))

    writer = TelemetryWriter(pool=cast(Any, None), judge=judge)
    large = asyncio.create_task(writer._prepare([batch(BULK_SAMPLES)]))
    await asyncio.to_thread(begun.wait, 10)
    small = asyncio.create_task(writer._prepare([batch(1)]))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(large, small)
    await writer._prepare([batch(2)])
    (_, thread), after_it, at_once = judged
    assert after_it == (1, thread)
    assert at_once == (2, threading.current_thread().name)
