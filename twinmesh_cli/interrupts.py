"""How a command that goes on until somebody ends it is ended."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """Act at Ctrl-C and SIGTERM, inside of an event loop."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until it is done, or cancelled by Ctrl-C or SIGTERM, which is no error."""
    task = asyncio.create_task(work)
    with on_interrupt(task.cancel):
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
    if not task.cancelled():
        task.result()
