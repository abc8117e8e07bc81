"""What a stream of the gateway client decides by itself."""

from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_client.stream import pause_s


def test_a_pause_is_what_the_server_asked_and_up_to_a_half_more() -> None:
    throttle = ingest_pb2.Throttle()
    throttle.retry_after.FromMilliseconds(2000)
    pauses = [pause_s(throttle) for _ in range(1000)]
    assert 2.0 <= min(pauses) < 2.1
    assert 2.9 < max(pauses) <= 3.0
