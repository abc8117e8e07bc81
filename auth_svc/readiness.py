"""Whether the whole mesh works, from what each service says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass

# Parts that services depend on, by the names of their health checks.
DEPENDENCIES = ("postgresql", "nats")
WHOLE = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The parts that were asked after, and those of them that fail; sorted."""

    asked: tuple[str, ...]
    failing: tuple[str, ...]


def judge(answers: Mapping[str, Mapping[str, bool | None]]) -> Readiness:
    """Return the mesh's readiness.

    A service that does not answer fails itself. One that answers names the
    dependencies that are away, whether it can serve without them or not; it fails
    itself only when it is not serving and names none.

    Args:
        answers: by service, then by `WHOLE` and dependency: serving or not, None
            without an answer.
    """
    asked, failing = set(answers), set()
    for service, answer in answers.items():
        whole = answer[WHOLE]
        dependencies = {name: serving for name, serving in answer.items() if name != WHOLE}
        asked.update(name for name, serving in dependencies.items() if serving is not None)
        if whole is None:
            failing.add(service)
            continue
        away = {name for name, serving in dependencies.items() if serving is False}
        failing.update(away if whole else away or {service})
    return Readiness(tuple(sorted(asked)), tuple(sorted(failing)))
