"""The arithmetic of limits, as one process does it; plain state without I/O.

A bucket is a token bucket that all processes share. This process takes tokens out of it ahead of
need, by its pace, and spends them batch by batch; what it does not spend goes back.

    ask ──▶ the shared bucket ──▶ granted ──▶ balance ──▶ take
                    ▲                            │
                    └────────── returned ◀───────┘
"""

import math

from telemetry_store.limits import CapacityAsk, CapacityGrant, LimitKey, Measure, TokenAsk, TokenGrant

# A bucket that a process has to itself holds what it fills with in so many seconds, as shared ones do.
BURST_S = 0.5
# So much of its own pace a process takes ahead, in seconds …
_AHEAD_S = 0.15
# … and no more than this of what the limit allows to all.
_AHEAD_AT_MOST_S = 0.1
_LEAST_RETRY_S, _LONGEST_RETRY_S = 0.25, 30.0
_SMOOTHING = 0.5
_USED_S = 1.0  # What was used fades with this time constant.
_EPSILON = 1e-6
_IDLE = 1e-3  # Of what the limit allows.


class Queue:
    """Spreads those who are sent back: each is told to come when those before it were served."""

    __slots__ = ("_length", "_since_s")

    def __init__(self) -> None:
        self._length = 0.0
        self._since_s = 0.0

    def wait_s(self, amount: float, *, owed: float, rate: float, now_s: float) -> float:
        """Put somebody with an amount at its end, and return when to come again, in seconds.

        Args:
            amount: what it wants.
            owed: what has to come in before anybody gets anything.
            rate: that comes in per second.
            now_s: by a monotonic clock.
        """
        self._length = max(0.0, self._length - rate * (now_s - self._since_s))
        self._since_s = now_s
        wait_s = min((owed + self._length) / rate, _LONGEST_RETRY_S)
        self._length = min(self._length + min(amount, BURST_S * rate), rate * _LONGEST_RETRY_S)
        return max(wait_s, _LEAST_RETRY_S)

    def is_empty(self, rate: float, now_s: float) -> bool:
        """Say whether all were served, at a rate per second."""
        return self._length <= rate * (now_s - self._since_s)


class SharedBucket:
    """This process's part of a bucket that all processes share.

    Args:
        key: which.
        rate: that it fills with, per second.
        now_s: by a monotonic clock, as everywhere here.

    Attributes:
        key: which.
        rate: that it fills with, per second; may be set anew.
        balance: tokens that this process has.
    """

    __slots__ = (
        "_asked_s",
        "_first",
        "_level",
        "_pace",
        "_queue",
        "_seen_s",
        "_taken",
        "_used",
        "_wanted",
        "balance",
        "key",
        "rate",
    )

    def __init__(self, key: LimitKey, rate: float, *, now_s: float) -> None:
        self.key = key
        self.rate = rate
        self.balance = 0.0
        self._level = 0.0  # Of the shared bucket, as it was last heard.
        self._used = 0.0  # By all, as it was last heard.
        self._seen_s = now_s
        self._asked_s = now_s
        self._pace = 0.0  # Of this process, per second.
        self._taken = 0.0  # By this process since it last asked.
        self._first = 0.0  # What the first of those who wait wants.
        self._wanted = 0.0  # What all of them want.
        self._queue = Queue()

    def has(self, amount: float) -> bool:
        """Say whether an amount may be taken now."""
        return self.balance >= amount - _EPSILON

    def take(self, amount: float) -> None:
        """Take an amount that there is."""
        self.balance -= amount
        self._taken += amount

    def give_back(self, amount: float) -> None:
        """Give back what was taken and not used."""
        self.balance += amount
        self._taken = max(0.0, self._taken - amount)

    def need(self, amount: float) -> None:
        """Ask for an amount the next time; who comes first gets it before the others."""
        if not self._wanted:
            self._first = amount
        self._wanted += amount

    def ask(self, now_s: float) -> TokenAsk:
        """Return what to ask the shared bucket for; what waited no longer does."""
        elapsed_s = max(now_s - self._asked_s, 0.01)
        self._asked_s = now_s
        self._pace += _SMOOTHING * (self._taken / elapsed_s - self._pace)
        self._taken = 0.0
        if self._pace < _IDLE * self.rate:
            self._pace = 0.0
        first, wanted = self._first, self._wanted
        self._first = self._wanted = 0.0
        ahead = min(_AHEAD_S * self._pace, _AHEAD_AT_MOST_S * self.rate)
        surplus = self.balance - wanted - 2 * ahead
        returned = surplus + ahead if surplus > 0 else 0.0
        self.balance -= returned
        needed = max(0.0, first - self.balance)
        return TokenAsk(
            key=self.key,
            rate=self.rate,
            returned=returned,
            needed=needed,
            wanted=max(needed, wanted + ahead - self.balance, 0.0) if not returned else 0.0,
        )

    def granted(self, grant: TokenGrant, now_s: float) -> None:
        """Take in the answer."""
        self.balance += grant.granted
        self._level = grant.tokens
        self._used = grant.used
        self._seen_s = now_s

    def is_idle(self, now_s: float) -> bool:
        """Say whether it may be forgotten: nothing is had, used, wanted or owed, and nobody queues."""
        return (
            not (self._wanted or self._taken or self._pace)
            and abs(self.balance) < _EPSILON
            and self._level + self.rate * (now_s - self._seen_s) >= 0
            and self._queue.is_empty(self.rate, now_s)
        )

    def used(self, now_s: float) -> int:
        """Return what all processes have used in about the last second."""
        return round(self._used * math.exp(-max(now_s - self._seen_s, 0) / _USED_S))

    def retry_s(self, amount: float, now_s: float) -> float:
        """Return when to come again for an amount that there is not, in seconds."""
        level = self._level + self.rate * (now_s - self._seen_s)
        return self._queue.wait_s(amount, owed=max(0.0, -level), rate=self.rate, now_s=now_s)


class OwnBucket:
    """A token bucket that nobody shares.

    Args:
        key: which.
        rate: that it fills with, per second.
        now_s: by a monotonic clock.

    Attributes:
        key: which.
        rate: that it fills with, per second; may be set anew.
    """

    __slots__ = ("_at_s", "_level", "_used", "key", "rate")

    def __init__(self, key: LimitKey, rate: float, *, now_s: float) -> None:
        self.key = key
        self.rate = rate
        self._level = BURST_S * rate
        self._used = 0.0
        self._at_s = now_s

    def has_any(self, now_s: float) -> bool:
        """Say whether something may be taken now, be it more than there is."""
        elapsed_s = max(now_s - self._at_s, 0.0)
        self._at_s = now_s
        self._level = min(self._level + self.rate * elapsed_s, BURST_S * self.rate)
        self._used *= math.exp(-elapsed_s / _USED_S)
        return self._level > 0

    def take(self, amount: float) -> None:
        """Take an amount; what there is not is owed."""
        self._level -= amount
        self._used += amount

    def give_back(self, amount: float) -> None:
        """Give back what was taken and not used."""
        self._level += amount
        self._used = max(0.0, self._used - amount)

    def used(self) -> int:
        """Return what was used in about the last second."""
        return round(self._used)

    def retry_s(self) -> float:
        """Return when there is something again, in seconds."""
        return min(max(-self._level / self.rate, _LEAST_RETRY_S), _LONGEST_RETRY_S)


class SharedCapacity:
    """This process's part of a limit on what is used at once.

    Args:
        key: which.
        limit: for all processes; may be set anew.

    Attributes:
        key: which.
        limit: for all processes.
    """

    __slots__ = ("_held", "_needed", "_peak", "_used", "_used_by_all", "key", "limit")

    def __init__(self, key: LimitKey, limit: int) -> None:
        self.key = key
        self.limit = limit
        self._held = 0
        self._used = 0
        self._peak = 0  # Most used since it was last asked.
        self._needed = 0
        self._used_by_all = 0

    def has(self, amount: int) -> bool:
        """Say whether an amount more may be used now."""
        return self._used + amount <= min(self._held, self.limit)

    def take(self, amount: int) -> None:
        """Use an amount more."""
        self._used += amount
        self._peak = max(self._peak, self._used)

    def give_back(self, amount: int) -> None:
        """Use it no more."""
        self._used -= amount

    def need(self, amount: int) -> None:
        """Ask for an amount the next time."""
        self._needed += amount

    def ask(self) -> CapacityAsk:
        """Return what to ask for: what was used since the last time, and what is needed."""
        wanted = max(self._peak if self._is_fleeting else 0, self._used) + self._needed
        self._peak, self._needed = self._used, 0
        # What is given up may be another process's before the answer is here.
        self._held = min(self._held, wanted)
        return CapacityAsk(self.key, self.limit, wanted)

    def granted(self, grant: CapacityGrant) -> None:
        """Take in the answer."""
        self._held = grant.granted
        self._used_by_all = grant.used

    @property
    def is_urgent(self) -> bool:
        """Say whether somebody needs more, or what lasts has ended and others may wait for it."""
        return bool(self._needed) or (not self._is_fleeting and self._held > self._used)

    @property
    def _is_fleeting(self) -> bool:
        """Say whether what ends will soon be used again."""
        return self.key.measure == Measure.INFLIGHT_BYTES

    @property
    def is_idle(self) -> bool:
        """Say whether it may be forgotten: nothing is held, used or needed."""
        return not (self._held or self._used or self._needed)

    def used_by_all(self) -> int:
        """Return what all processes hold, as it was last heard."""
        return self._used_by_all
