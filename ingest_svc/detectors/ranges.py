"""Runs as detectors go through them: one range of samples per slot, without what comes late."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ingest_svc.detectors.detector import Index, Slots, Times


class Ranges(NamedTuple):
    """Samples [start, start + length) of different slots.

    Attributes:
        slots: int32[r], each once.
        starts: intp[r].
        lengths: intp[r].
    """

    slots: Slots
    starts: Index
    lengths: Index

    def at(self, chosen: Index | npt.NDArray[np.bool_] | slice) -> "Ranges":
        """Return some of them, by place or by mask."""
        return Ranges(self.slots[chosen], self.starts[chosen], self.lengths[chosen])

    def firsts(self) -> Index:
        """Return where each range begins when they are put one after the other."""
        return np.cumsum(self.lengths) - self.lengths

    def places(self, samples: int) -> Index | slice:
        """Return where all their samples are; a slice, which copies nothing, when it is all there are."""
        firsts, total = self.firsts(), int(self.lengths.sum())
        if total == samples and (firsts == self.starts).all():
            return slice(None)
        return np.repeat(self.starts - firsts, self.lengths) + np.arange(total)


def joined(slots: Slots, starts: Index, lengths: Index) -> Ranges:
    """Join the runs of each slot, which follow each other."""
    firsts = np.flatnonzero(np.append(True, slots[1:] != slots[:-1]))
    if len(firsts) == len(slots):
        return Ranges(slots, starts, lengths)
    return Ranges(slots[firsts], starts[firsts], np.add.reduceat(lengths, firsts))


def part_late(ranges: Ranges, times: Times, last_us: Times) -> tuple[Ranges, Ranges]:
    """Part what is not later than the last sample of its slot, and the rest.

    Args:
        ranges: with ascending times each.
        times: int64[n].
        last_us: int64[r], of each range's slot.
    """
    late = times[ranges.starts] <= last_us
    if not late.any():
        return ranges.at(late), ranges
    some = ranges.at(late)
    old = times[some.places(len(times))] <= np.repeat(last_us[late], some.lengths)
    heads = np.zeros(len(ranges.slots), np.intp)
    heads[late] = np.add.reduceat(old, some.firsts(), dtype=np.intp)
    rest = heads < ranges.lengths
    tails = Ranges(ranges.slots, ranges.starts + heads, ranges.lengths - heads).at(rest)
    return some._replace(lengths=heads[late]), tails
