"""What a person sees of an epoch: a bar on a terminal, plain lines where output is kept. Decides nothing."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0  # between plain lines within an epoch


class Reporter:
    """One per run. `start` an epoch, `step` per batch, `finish` with its row of metrics.

    Of several processes all but one are `quiet`.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=True, highlight=False, quiet=quiet)
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start(self, title: str, steps: int) -> None:
        self.title, self.steps, self.done = title, steps, 0
        self.began = self.last = time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(title, total=steps, numbers="")
            self.bar.start()

    def step(self, done: int, images: int, loss: float, top1: float) -> None:
        """`done` batches and `images` so far in this epoch, `loss` and `top1` (percent) their means."""
        per_second = images / max(time.monotonic() - self.began, 1e-9)
        self._advance(done, f"loss {loss:.4f}  top-1 {top1:.2f} %  {per_second:.0f} images/s")

    def count(self, title: str, done: int, steps: int) -> None:
        """For what is no epoch: `done` of `steps`, called with 0 first and with all of them last."""
        if done == 0:
            self.start(title, steps)
        elif done < steps:
            self._advance(done, "")
        else:
            self.finish(f"{steps}/{steps}")

    def _advance(self, done: int, numbers: str) -> None:
        self.done = done
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.done, numbers=numbers)
        elif now - self.last >= QUIET_SECONDS:
            self.last = now
            left = (now - self.began) / self.done * (self.steps - self.done)
            said = (self.title, f"{self.done}/{self.steps}", numbers, f"{left:.0f} s left")
            self.say("  ".join(part for part in said if part))

    def finish(self, text: str) -> None:
        self.stop()
        self.say(f"{self.title}  {text}")

    def stop(self) -> None:
        """Gives the terminal back; safe to call twice."""
        if self.bar:
            self.bar.stop()
            self.bar = None
