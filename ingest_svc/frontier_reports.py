"""Twin replicas' frontiers as they are reported on the bus."""

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from ingest_svc.twin_frontiers import TwinFrontiers
from telemetry_store.frontier_report import SUBJECT, decode

_log = structlog.get_logger()


async def follow_reports(client: Client, *, frontiers: TwinFrontiers) -> None:
    """Take what is reported as long as the bus is open; one not understood is as none."""

    async def on_message(message: Msg) -> None:
        try:
            report = decode(message.data)
        except ValueError as error:
            _log.warning("frontier report not understood", subject=message.subject, error=str(error))
            return
        frontiers.take(report)

    frontiers.listen_anew()
    await client.subscribe(SUBJECT, cb=on_message)
