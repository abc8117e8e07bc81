"""Tasks with an owner: none outlives the context that began it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

_CANCEL_AGAIN_S = 1.0  # In which a task may put its things away.


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None], *, name: str) -> AsyncIterator[None]:
    """Run work beside the context's body; cancel it in the end and wait until it is gone.

    Work that fails by itself raises when the context ends.
    """
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        while not task.done():
            task.cancel()
            # The NATS client swallows a cancellation while it waits for a slow bus.
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        with suppress(asyncio.CancelledError):
            await task
