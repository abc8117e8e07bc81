import pytest

from auth_svc.readiness import Readiness, judge

_WELL: dict[str, bool | None] = {"": True, "postgresql": True, "nats": None}


def _failing(answer: dict[str, bool | None]) -> tuple[str, ...]:
    return judge({"auth_svc": _WELL, "ingest_svc": answer}).failing


def test_a_mesh_that_works_names_what_was_asked_after() -> None:
    answers = judge({"auth_svc": _WELL, "ingest_svc": {"": True, "postgresql": True, "nats": True}})
    assert answers == Readiness(("auth_svc", "ingest_svc", "nats", "postgresql"), ())


@pytest.mark.parametrize(
    ("answer", "failing"),
    [
        ({"": None, "postgresql": None, "nats": None}, ("ingest_svc",)),
        ({"": False, "postgresql": True, "nats": False}, ("nats",)),
        ({"": True, "postgresql": True, "nats": False}, ("nats",)),
        ({"": False, "postgresql": False, "nats": False}, ("nats", "postgresql")),
        ({"": False, "postgresql": True, "nats": True}, ("ingest_svc",)),
        ({"": False, "postgresql": None, "nats": None}, ("ingest_svc",)),
    ],
)
def test_failing_parts_are_named(answer: dict[str, bool | None], failing: tuple[str, ...]) -> None:
    assert _failing(answer) == failing
