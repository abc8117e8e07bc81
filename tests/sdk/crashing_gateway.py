"""A gateway that is killed: says on stdout what it is about to add, what is on its disk, and what is durable.

python -m tests.sdk.crashing_gateway ADDRESS SPOOL FIRST      (the token comes by the environment)
"""

import asyncio
import os
import sys

import numpy as np

from twinmesh_client import GatewayClient, Kind

SAMPLES = 50


async def run(address: str, spool: str, first: int) -> None:
    async with GatewayClient(
        address, token=os.environ["TOKEN"], name="line-4", spool=spool, max_age=0.005
    ) as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)
        while True:
            times = np.arange(first, first + SAMPLES)
            first += SAMPLES
            tell("adding", first)
            await count.add_many(times, times)
            await gateway.persist()
            tell("spooled", first)
            if first // SAMPLES % 8 == 0:
                await gateway.flush()
                tell("durable", first)


def tell(what: str, before: int) -> None:
    os.write(1, f"{what} {before}\n".encode())


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
