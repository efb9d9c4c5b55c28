"""Whether a command hangs, told by what its processes do rather than by the clock: on a machine that does other things,
or that stopped them for a while, a minute says nothing.
"""

import os
import time
from pathlib import Path

WORKED = 60.0  # seconds of processor time, of all of a case's processes together
ASLEEP = 30.0  # seconds in which none of them did anything, nor wanted to
EVERY = 0.25  # seconds between two looks
LEAST = 0.02  # share of a core that is work; who polls has less
_TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """Of the processes of a session. ``hangs`` is asked again and again; looks are as far apart as EVERY."""

    def __init__(self, session: int):
        self.session, self.worked, self.asleep, self.looked = session, 0.0, 0.0, time.monotonic()

    def hangs(self) -> bool:
        passed = time.monotonic() - self.looked
        if passed < EVERY:
            return False
        self.looked += passed
        worked, waits = _of(self.session)
        # Who watches may itself have been stopped: then a long time passed between two looks, and says nothing.
        if waits and worked - self.worked < LEAST * passed:
            self.asleep += min(passed, 4 * EVERY)
        else:
            self.asleep = 0.0
        self.worked = max(self.worked, worked)
        return self.worked > WORKED or self.asleep > ASLEEP


def _of(session: int) -> tuple[float, bool]:
    """Processor time of its processes and of those that they have waited for, and whether all of them sleep."""
    ticks, waits = 0, True
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # gone
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
            waits &= fields[0] in "SZ"  # not running, nor waiting for a disk, nor stopped by somebody
    return ticks / _TICKS, waits
