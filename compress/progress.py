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
        self.done = done
        now = time.monotonic()
        numbers = f"loss {loss:.4f}  top-1 {top1:.2f} %  {images / max(now - self.began, 1e-9):.0f} images/s"
        if self.bar:
            self.bar.update(self.task, completed=self.done, numbers=numbers)
        elif now - self.last >= QUIET_SECONDS:
            self.last = now
            left = (now - self.began) / self.done * (self.steps - self.done)
            self.say(f"{self.title}  {self.done}/{self.steps}  {numbers}  {left:.0f} s left")

    def finish(self, text: str) -> None:
        self.stop()
        self.say(f"{self.title}  {text}")

    def stop(self) -> None:
        """Gives the terminal back; safe to call twice."""
        if self.bar:
            self.bar.stop()
            self.bar = None
