"""How far the feed was followed: per instance without a gap, and what came beyond."""

from collections.abc import Mapping

from telemetry_store.commit_numbers import Coverage
from telemetry_store.feed import Frontier

# Commits that came although earlier ones are missing; what is beyond is read from the store.
_MOST_BEYOND = 10_000


class FeedFrontier:
    """Counts commits in, in whatever order their parts come.

    Args:
        frontier: up to which commit of each instance all are known.

    Attributes:
        base: instances up to this one commit no more, and all of theirs are known; 0: none.
    """

    def __init__(self, frontier: Frontier) -> None:
        self._through = dict(frontier)
        self._beyond: dict[int, dict[int, set[int]]] = {}  # parts still to come, by instance and commit
        self.base = 0

    @property
    def through(self) -> Mapping[int, int]:
        """Return up to which commit of each instance all are known now; it does not go on by itself."""
        return dict(self._through)

    @property
    def has_holes(self) -> bool:
        """Say whether a commit came, or a part of it, and one before it did not come whole."""
        return any(
            max(beyond) > self._through.get(instance, 0) + 1 for instance, beyond in self._beyond.items()
        )

    @property
    def coverage(self) -> Coverage:
        """Return what is known, for a token."""
        open_ = {instance: number for instance, number in self._through.items() if instance > self.base}
        return Coverage(self.base, open_)

    def knows(self, instance: int, commit_no: int) -> bool:
        """Say whether a commit came whole."""
        if commit_no <= self._through.get(instance, 0):
            return True
        return self._beyond.get(instance, {}).get(commit_no) == set()

    def take(self, instance: int, commit_no: int, part: int, parts: int) -> bool:
        """Count a part of a commit in; says whether that made it whole."""
        through = self._through.get(instance, 0)
        if commit_no <= through:
            return False
        beyond = self._beyond.setdefault(instance, {})
        if commit_no not in beyond and len(beyond) >= _MOST_BEYOND:
            return False
        missing = beyond.setdefault(commit_no, set(range(parts)))
        made_whole = missing == {part}
        missing.discard(part)
        self._advance(instance)
        return made_whole

    def advance(self, frontier: Frontier) -> None:
        """Count in what was read from the store, up to its own frontier."""
        for instance, commit_no in frontier.items():
            if commit_no > self._through.get(instance, 0):
                self._through[instance] = commit_no
            beyond = self._beyond.get(instance)
            if beyond is None:
                continue
            for known in [number for number in beyond if number <= self._through[instance]]:
                del beyond[known]
            self._advance(instance)

    def _advance(self, instance: int) -> None:
        beyond = self._beyond[instance]
        following = self._through.get(instance, 0) + 1
        while following in beyond and not beyond[following]:
            del beyond[following]
            self._through[instance] = following
            following += 1
        if not beyond:
            del self._beyond[instance]
