"""Which kernel and configuration is fastest for every distinct problem of a network: estimates rank, races decide.

First every kernel's default races, the dense twins of sparse layers included, so that "sparse" is kept only where it
wins. Then, batch by batch, the problems from which most milliseconds of the whole network are to be expected try their
next configurations, in the order of the kernels' own estimates, against the best so far. Last, the fastest few of every
problem race for longer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from tvm.target import Target

from kerf.deploy.compiler.build import choose
from kerf.deploy.compiler.choice import Choice, ways
from kerf.deploy.compiler.targets import describe
from kerf.deploy.frontend.network import Layer, Network
from kerf.deploy.measure.record import Record, RecordBook, race_name
from kerf.errors import BadInput
from kerf.kernels import reference
from kerf.kernels.cpu.layout import to_planes
from kerf.kernels.kernel import dense_twin
from kerf.kernels.problem import Problem
from kerf.tune.places import Here, Place
from kerf.tune.progress import Progress, Row
from kerf.tune.runners import ROUNDS, WRONG, Entrant, Measurer, Result

BATCH = 16  # candidates built together: enough to keep the builders busy, few enough to stop in time
FIELD = 4  # of them in one race
FINALISTS, FINAL_ROUNDS, PLAY_OFF_SECONDS = 5, 25, 1.0  # per problem
WITHIN_REACH = 0.7  # a kernel whose default takes more than the best over this is not tuned: none gained as much
# Share of a problem's time that further configurations of a kernel can be expected to save after so many were measured:
# an exponential fitted to the sweeps of scripts/bench/tuning_sweep.py (docs/benchmarks).
FIRST_GAIN, HALF = 0.06, 3


@dataclass
class Task:
    """A distinct problem of the network."""

    layer: Layer
    count: int  # of layers that it is of
    ways: list[list[Choice]]  # a kernel's configurations each, see kerf.deploy.compiler.choice.ways

    @property
    def problem(self) -> Problem:
        return self.layer.problem

    @property
    def default(self) -> Choice:
        """What is built when nothing is known."""
        return self.ways[0][0]


@dataclass(frozen=True)
class Race:
    """Choices to measure in the same rounds."""

    task: Task
    known: list[Choice]  # measured before
    new: list[Choice]


@dataclass
class Summary:
    """What a search measured, why it ended, and what it gained: microseconds of all layers together."""

    problems: int = 0
    measured: int = 0
    failed: int = 0
    reused: int = 0
    stopped: str = "nothing is left to try"
    failure: str = ""  # the most frequent, and how often
    before_us: float = 0.0  # layers together, by their defaults
    after_us: float = 0.0
    drift: tuple[float, ...] = ()  # of every winner over its default: as measured last / when it won
    seconds: dict[str, float] = field(default_factory=lambda: {"build": 0.0, "measure": 0.0, "total": 0.0})


def search(
    network: Network,
    target: Target,
    threads: int,
    book: RecordBook,
    *,
    trials: int,
    minutes: float | None = None,
    tolerance: float = 0.0,
    reach: float = WITHIN_REACH,
    place: Place | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Measure at most ``trials`` configurations within ``minutes``; what ``book`` holds is not measured again.

    Ends early when all that is left is expected to save less than ``tolerance`` of the network's time. Kernels whose
    default takes longer than the best over ``reach`` are left at that; with 0 none is. Raises
    DeviceLost when no device of ``place`` is left; what was measured is in the book.
    """
    with _Search(network, target, threads, book, reach, place or Here(), progress) as course:
        course.run(trials, minutes, tolerance)
        return course.summary


class _Search:
    def __init__(
        self,
        network: Network,
        target: Target,
        threads: int,
        book: RecordBook,
        reach: float,
        place: Place,
        progress: Progress | None,
    ):
        self.target, self.threads, self.book, self.reach, self.place = target, threads, book, reach, place
        self.progress = progress or Progress(lambda _: None)
        self.versions = place.provenance()
        counts = Counter(layer.problem for layer in network.layers.values())
        layers = {layer.problem: layer for layer in network.layers.values()}
        self.tasks = [Task(layer, counts[p], ways(p, target)) for p, layer in layers.items()]
        self.libraries: dict[tuple, str] = {}  # of choices that were built
        self.examples: dict[Problem, tuple] = {}
        self.failed: set[tuple] = set()
        self.errors: Counter[str] = Counter()
        self._index: dict[Problem, tuple[int, dict]] = {}
        self.raced: list[Task] = []
        self.measurer: Measurer | None = None
        reused = sum(1 for task in self.tasks for way in task.ways for c in way if self._settled(c))
        self.summary = Summary(problems=len(self.tasks), reused=reused)

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.measurer is not None:
            self.measurer.close()

    def run(self, trials: int, minutes: float | None, tolerance: float) -> None:
        start = time.monotonic()
        deadline = start + 60 * minutes if minutes is not None else np.inf
        longest = 0.0  # seconds of a batch
        for races in self._batches(tolerance):
            left = trials - self.summary.measured - self.summary.failed
            began = time.monotonic()
            if left <= 0:
                self.summary.stopped = f"{trials} trials"
                break
            if began + longest / 2 + self._reserve(minutes) >= deadline:
                self.summary.stopped = f"{minutes:g} minutes"
                break
            self._race(_first(races, left))
            longest = max(longest, time.monotonic() - began)
            self._report(start, deadline, trials)
        self._play_off()
        self.summary.before_us = sum(t.count * self._us(t.default) for t in self.tasks)
        self.summary.after_us = self._together()
        self.summary.seconds["total"] = time.monotonic() - start

    def _reserve(self, minutes: float | None) -> float:
        """Seconds to keep for the play-off."""
        return min(PLAY_OFF_SECONDS * len(self.raced), 0.3 * 60 * (minutes or 0))

    def _batches(self, tolerance: float) -> Iterator[list[Race]]:
        """Defaults of everything, then, as long as it pays, the next configurations of what promises most."""
        defaults = [Race(t, [], [c for c in self._defaults(t) if not self._settled(c)]) for t in self.tasks]
        defaults = [race for race in defaults if race.new]
        defaults.sort(key=lambda race: -race.task.count * race.task.problem.macs)
        while defaults:
            batch: list[Race] = []
            while defaults and sum(len(race.new) for race in batch) < BATCH:
                batch.append(defaults.pop(0))
            yield batch
        self._refuse_if_nothing_runs()
        while True:
            self.book.refresh()  # another tuner may have been at it
            gains = [self._expected_gain(t) for t in self.tasks]
            if sum(gains) <= tolerance * self._together():
                if any(gains):
                    self.summary.stopped = f"what is left is expected to save less than {tolerance:.1%}"
                return
            batch = []
            for i in sorted(range(len(gains)), key=lambda i: -gains[i]):
                if gains[i] and sum(len(race.new) for race in batch) < BATCH:
                    task = self.tasks[i]
                    batch.append(Race(task, [self._best(task)], self._untried(task)[:FIELD]))
            yield batch

    def _race(self, races: list[Race], rounds: int = ROUNDS) -> None:
        """Build and measure, and write down what came out as soon as it did."""
        if self.measurer is None:
            self.measurer = Measurer(self.target, self.threads, self.place)
        began = time.monotonic()
        wanted = {c.key: c for race in races for c in (*race.known, *race.new) if c.key not in self.libraries}
        built = self.measurer.build([c.prim_func(self.target) for c in wanted.values()])
        self.libraries |= {key: library for key, (library, _) in zip(wanted, built) if library is not None}
        for choice, (library, error) in zip(wanted.values(), built):
            if library is None:
                self._keep([choice], [Result((), (), error)])
        self.summary.seconds["build"] += time.monotonic() - began
        began = time.monotonic()
        running = {}
        for race in races:
            x, residual, truth = self._example(race.task)
            choices = [c for c in (*race.known, *race.new) if c.key in self.libraries]
            layer = race.task.layer
            entrants = [Entrant(self.libraries[c.key], (*c.pack(layer).values(), *residual)) for c in choices]
            if entrants:
                running[self.measurer.race(x, entrants, truth, rounds, layer.apart)] = choices
        for done in as_completed(running):
            self._keep(running[done], done.result())
        self.raced += [race.task for race in races if race.task not in self.raced]
        self.summary.seconds["measure"] += time.monotonic() - began

    def _keep(self, choices: Sequence[Choice], results: Sequence[Result]) -> None:
        race = race_name()
        known = [self._settled(c) for c in choices]
        self.book.add(*(self._record(c, r, race) for c, r in zip(choices, results)))
        self.failed |= {c.key for c, r in zip(choices, results) if not r.latency_us}
        self.errors.update(r.error for r in results if not r.latency_us)
        self.summary.failure = _most_frequent(self.errors)
        self.summary.measured += sum(1 for r, k in zip(results, known) if r.latency_us and not k)
        self.summary.failed += sum(1 for r in results if not r.latency_us)

    def _refuse_if_nothing_runs(self) -> None:
        """When all that was tried failed, it is not the kernels' fault, and the next thousand would fail as well."""
        if self.errors and not any(self._best_us(t) < np.inf for t in self.tasks):
            raise BadInput(
                f"none of {self.errors.total()} candidates ran, so nothing can be tuned; {self.summary.failure}; "
                "--trials 0 builds without measuring"
            )

    def _record(self, c: Choice, r: Result, race: str) -> Record:
        return Record(
            problem=c.problem.to_json(),
            kernel=c.kernel,
            config=c.config.copy(),
            target=describe(self.target),
            latency_us=r.latency_us,
            versions=self.versions,
            error=r.error,
            race=race,
            cold_us=r.cold_us,
        )

    def _play_off(self) -> None:
        """The fastest few of everything that was raced, and its default, for more rounds: records are confirmed or
        corrected. So many comparisons were made before that chance had its part in them.
        """
        races = [Race(t, self._finalists(t), []) for t in self.raced if self._best_us(t) < np.inf]
        races = [race for race in races if len(race.known) > 1]
        before = {id(race): {c.key: self._us(c) for c in race.known} for race in races}
        for i in range(0, len(races), BATCH):
            self._race(races[i : i + BATCH], FINAL_ROUNDS)
        drift = []
        for race in races:
            us, winner, default = before[id(race)], self._best(race.task), race.task.default
            if winner != default and winner.key in us and us.get(default.key, np.inf) < np.inf:
                drift.append(self._us(winner) / us[winner.key] / (self._us(default) / us[default.key]))
        self.summary.drift = tuple(drift)

    def _finalists(self, task: Task) -> list[Choice]:
        """The best, the next of what was measured, and the default."""
        best = self._best(task)
        ranked = sorted((c for way in task.ways for c in way if c != best), key=self._us)
        ranked = [c for c in ranked if self._us(c) < np.inf][: FINALISTS - 1]
        return [best, *ranked, *([task.default] if task.default not in (best, *ranked) else [])]

    def _best(self, task: Task) -> Choice:
        try:
            return choose(task.problem, self.target, self.book, self.versions)
        except BadInput as error:
            raise BadInput(f"{error}; {self.summary.failure}" if self.summary.failure else str(error)) from error

    def _defaults(self, task: Task) -> list[Choice]:
        """Of every kernel, and what is known from elsewhere to be good."""
        known, defaults = self._best(task), [way[0] for way in task.ways]
        return defaults if known in defaults else [*defaults, known]

    def _untried(self, task: Task) -> list[Choice]:
        """Configurations of the kernels that may win, in turn. Which these are, the defaults' first race says: by what
        was measured last, a kernel at the edge would be in reach of one search and not of the next.
        """
        defaults = [self._first_us(way[0]) for way in task.ways]
        live = [way for way, us in zip(task.ways, defaults) if us * self.reach <= min(defaults)]
        ways = [[c for c in way if not self._settled(c)] for way in live]
        return [c for row in zip_longest(*ways) for c in row if c is not None]

    def _expected_gain(self, task: Task) -> float:
        """Microseconds of the network that the task's untried configurations may save."""
        if not self._untried(task):
            return 0.0
        tried = sum(len(self._last(p)) for p in {task.problem, dense_twin(task.problem)})
        return task.count * self._best_us(task) * FIRST_GAIN * 2.0 ** (-tried / HALF)

    def _last(self, problem: Problem) -> dict[tuple, Record]:
        """The last record of everything that was tried."""
        found = self.book.of(problem.to_json(), describe(self.target), self.versions)
        size, last = self._index.get(problem, (0, {}))
        last.update((r.what, r) for r in found[size:])
        self._index[problem] = (len(found), last)
        return last

    def _settled(self, choice: Choice) -> bool:
        """Whether there is no need to measure. What crashed once, on a busy machine perhaps, is tried by the next
        search again, but not by this one.
        """
        record = self._last(choice.problem).get(choice.key[1:])
        return choice.key in self.failed or (record is not None and (bool(record.latency_us) or WRONG in record.error))

    def _us(self, choice: Choice) -> float:
        record = self._last(choice.problem).get(choice.key[1:])
        return record.us if record else np.inf

    def _first_us(self, choice: Choice) -> float:
        records = self.book.of(choice.problem.to_json(), describe(self.target), self.versions)
        return next((r.us for r in records if r.latency_us and r.what == choice.key[1:]), np.inf)

    def _best_us(self, task: Task) -> float:
        """Infinite as long as nothing of the task is measured."""
        return self._us(self._best(task))

    def _together(self) -> float:
        """Microseconds of all layers by the best of each."""
        return sum(t.count * self._best_us(t) for t in self.tasks)

    def _example(self, task: Task) -> tuple:
        if task.problem not in self.examples:
            self.examples[task.problem] = example(task.layer, self.place.pack)
        return self.examples[task.problem]

    def _report(self, start: float, deadline: float, trials: int) -> None:
        done = self.summary.measured + self.summary.failed
        elapsed = time.monotonic() - start
        rows = [
            Row(t.layer.problem.describe(), t.count, self._us(t.default), self._best_us(t), len(self._untried(t)))
            for t in self.tasks
        ]
        to_come = min(trials - done, sum(row.left for row in rows))
        left = min(deadline - time.monotonic(), elapsed / max(done, 1) * to_come)
        self.progress.update(rows, done, elapsed, left)


def _most_frequent(errors: Counter[str]) -> str:
    """ "" where there are none."""
    return "".join(f"{count} failed with: {error}" for error, count in errors.most_common(1))


def _first(races: list[Race], most: int) -> list[Race]:
    """As many of their new configurations as are allowed."""
    cut = []
    for race in races:
        new = race.new[:most]
        most -= len(new)
        if new:
            cut.append(Race(race.task, race.known, new))
    return cut


def example(layer: Layer, pack: Callable = to_planes, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(x, [residual], y) of a layer: random inputs as kernels take them, and the output that every candidate must
    produce.
    """
    p, rng = layer.problem, np.random.default_rng(seed)
    if p.x.quantised:
        return _integer_example(layer, pack, rng)
    x = rng.standard_normal(p.in_shape).astype(np.float32)
    residual = [rng.standard_normal(p.out_shape).astype(np.float32)] if p.residual else []
    truth = reference.conv2d(p, x, layer.weight, layer.bias, *residual)
    return pack(x), [pack(r) for r in residual], truth


def _integer_example(
    layer: Layer, pack: Callable, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    p = layer.problem
    x = rng.integers(0, 256, p.in_shape).astype(p.x.numpy)
    residual: list[np.ndarray] = []
    if p.residual:
        kind = p.residual_type or p.y
        made = rng.integers(0, 256, p.out_shape) if kind.quantised else rng.standard_normal(p.out_shape)
        residual = [made.astype(kind.numpy)]
    assert layer.weight_scale is not None
    given = layer.weight, layer.weight_scale, layer.bias, layer.types
    return pack(x), [pack(r) for r in residual], reference.conv2d_integer(p, x, *given, *residual)
