"""What judges of samples remember, to be kept for whoever goes on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SavedState:
    """One state.

    Attributes:
        tenant: whose.
        detector: of what it is, such as "series".
        subject: of which one.
        time_us: of the latest sample in it, microseconds since the epoch: a newer one replaces it.
        state: opaque to the store.
    """

    tenant: str
    detector: str
    subject: str
    time_us: int
    state: bytes
