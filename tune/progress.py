"""What a person sees of a search: a table that changes on a terminal, lines where output is kept. Decides nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

QUIET_SECONDS = 5.0  # between lines
Say = Callable[[str], object]  # gets a line
SHOWN = 12  # layers on a terminal


@dataclass(frozen=True)
class Row:
    """A distinct layer: times in microseconds, infinite while they are not known."""

    name: str
    count: int
    default_us: float
    best_us: float
    left: int  # configurations


class Progress:
    """One per search: `update` after every batch, `stop` at the end.

    ``say`` gets a line now and then; on a ``console`` that is a terminal a table stands in its place.
    """

    def __init__(self, say: Say = print, console: Console | None = None):
        self.say, self.console = say, console
        self.live: Live | None = None
        self.last = -math.inf

    def update(self, rows: Sequence[Row], measured: int, elapsed: float, left: float) -> None:
        """``measured`` configurations in ``elapsed`` seconds, at most ``left`` seconds to come."""
        best = sum(r.count * r.best_us for r in rows)
        default = sum(r.count * r.default_us for r in rows)
        text = f"measured {measured} configurations in {elapsed:.0f} s"
        text += f", at most {max(left, 0.0):.0f} s left" if math.isfinite(left) else ""  # a batch may end late
        if math.isfinite(best):
            text += f", layers together {best / 1e3:.3f} ms ({default / best:.2f}x of untuned)"
        else:
            text += f", {sum(not math.isfinite(r.best_us) for r in rows)} layers not measured yet"
        if self.console is not None and self.console.is_terminal:
            if self.live is None:
                self.live = Live(console=self.console, transient=True)
                self.live.start()
            self.live.update(_table(rows, text))
        elif time.monotonic() - self.last >= QUIET_SECONDS:
            self.last = time.monotonic()
            self.say(text)

    def stop(self) -> None:
        """Gives the terminal back; safe to call twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def _table(rows: Sequence[Row], title: str) -> Table:
    table = Table("layer", "times", "untuned µs", "best µs", "left to try", title=title)
    for r in sorted(rows, key=lambda r: -r.count * min(r.best_us, 1e9))[:SHOWN]:
        table.add_row(r.name, str(r.count), f"{r.default_us:.1f}", f"{r.best_us:.1f}", str(r.left))
    return table
