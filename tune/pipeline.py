"""compile(path) -> Bundle: .onnx -> convert -> search -> build -> verify -> race -> a folder that a device can run.

What model_tune.py does, as a function. What can be wrong with the input or the machine is found before any work is
done, and a bundle takes its place only when it has been verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tvm.target import Target

from kerf.deploy.compiler import preflight, steps, targets
from kerf.deploy.compiler.build import Built, build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.partition.plain import plain
from kerf.deploy.report import claims, report
from kerf.deploy.report.schema import Report
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime.gpu_session import GpuSession
from kerf.deploy.runtime.manifest import Manifest
from kerf.deploy.runtime.session import Session, load
from kerf.errors import BadInput
from kerf.kernels.backends import backend_of
from kerf.tune import bundle_contents, pieces, proof, wording
from kerf.tune.pieces import Weighed
from kerf.tune.places import Gpu, Here, Place
from kerf.tune.progress import Progress, Say
from kerf.tune.remote import Tracker
from kerf.tune.request import DENSE_ENGINES, RECORDS, Request
from kerf.tune.search import Summary, search
from kerf.tune.whole_network import better


@dataclass(frozen=True)
class Bundle:
    """A compiled network on disk. ``report`` is None, and ``unverified`` says why, where this machine cannot run it."""

    path: Path
    manifest: Manifest
    report: Report | None = None
    search: Summary | None = None
    unverified: str = ""

    @property
    def verified(self) -> bool:
        """Whether its outputs were compared with ONNX Runtime's. A bundle whose outputs differ is never made."""
        return self.report is not None

    @property
    def speedup(self) -> float | None:
        """Over the fastest dense engine of the race, median of the rounds; None if none was raced."""
        ratio = self.report["speedup"] if self.report else None
        return ratio["median"] if ratio else None

    @property
    def latency_ms(self) -> dict[str, float]:
        """Median milliseconds per call of every engine that was raced, "kerf" among them."""
        return {engine: found["median"] for engine, found in self.report["latency_ms"].items()} if self.report else {}

    @cached_property
    def _session(self) -> Session | GpuSession:
        return load(self.path)

    def session(self) -> Session | GpuSession:
        """The network ready to run, loaded once, at the first call. Raises BundleError where this machine cannot."""
        return self._session

    def run(self, x: Any) -> Any:
        """As the session's (kerf.load): arrays of the types and sizes that the manifest names. Raises BadInput."""
        return self._session.run(x)

    def __repr__(self) -> str:
        if self.report is None:
            return f"Bundle({str(self.path)!r}, not verified: {self.unverified})"
        headline, _ = claims.verdict(self.report)
        return f"Bundle({str(self.path)!r}, {self.latency_ms['kerf']:.3g} ms, {headline[0].lower()}{headline[1:]})"


def compile(
    path: str | Path,
    out: str | Path | None = None,
    *,
    n: int | Iterable[int] = 4,
    sparsity: float = 0.5,
    target: str = "native",
    precision: str | None = None,
    threads: int = 1,
    batch: int | None = None,
    trials: int = 1000,
    minutes: float | None = None,
    tolerance: float = 0.005,
    against: Iterable[str] = DENSE_ENGINES,
    seconds: float = 10.0,
    engine: str = "auto",
    records: str | Path = RECORDS,
    rpc: str = "",
    rpc_key: str = "",
    say: Say | None = None,
) -> Bundle:
    """Compiles the .onnx file at ``path`` into the folder ``out`` (<name>.kerf beside it), and proves what it is worth.

    n: rows of a block, the N of 1xN pruning; of several, each layer has the largest that finds its zeros.
    sparsity: least share of zero blocks for a layer to go sparse. target: "native", an LLVM CPU name,
    "llvm -mcpu=... -mtriple=..." or "cuda -arch=sm_90"; precision: of a GPU's products ("f16" by default, "tf32",
    "f32"). threads: of kerf and of the engines that it races. batch: images per call, where the file leaves it open.
    trials, minutes: the most that the search measures, and for how long; 0 trials compiles untuned; it ends before when
    less than ``tolerance`` of the network's time is to be gained. Measurements are kept in the file ``records`` and
    never made twice. against, seconds: dense engines to race, those installed, and for how long. engine: "auto" lets a
    dense engine run what it runs faster, if need be all of it; "kerf" keeps whatever kerf can run. rpc ("HOST:PORT" of
    a TVM tracker), rpc_key: the devices to measure on. say: gets a line for each step; by default nobody does.

    Raises BadInput or FileNotFoundError before anything is done for what cannot work; Mismatch when the compiled
    network computes something else than the file, DeviceLost when the devices are gone: then ``out`` is what it was.
    """
    path = Path(path)
    request = Request(
        path=path, out=Path(out) if out else path.with_suffix(".kerf"), n=(n,) if isinstance(n, int) else tuple(n),
        sparsity=sparsity, target=target, precision=precision or "", threads=threads, batch=batch, trials=trials,
        minutes=minutes, tolerance=tolerance, against=tuple(against), seconds=seconds, engine=engine, records=Path(records), rpc=rpc,
        rpc_key=rpc_key,
    )  # fmt: skip
    return carry_out(request, wording.call(request), say)


def carry_out(request: Request, command: str, say: Say | None = None, progress: Progress | None = None) -> Bundle:
    """The whole stage. ``command``: what makes the same bundle again, for its report."""
    say = say or (lambda _: None)
    progress = progress or Progress(say)
    preflight.refuse_tvm()
    target = targets.parse(request.target, request.threads)
    foreign = "" if request.rpc else targets.foreign(target) or ""
    request = refuse(request, target)
    network = convert(request.path, request.n, request.sparsity, request.batch, request.precision)
    refuse_machine(request, target, network.weights_bytes, runs_here=not (foreign or request.rpc))
    say(request.describe())
    job = Job(
        request, target, foreign, command, say, place_of(request, backend_of(target).device if not foreign else "")
    )
    network = pieces.whole(network) if job.whole else pieces.able(network, target, say)
    say(wording.layers(network, request))
    if foreign:
        say(f"{foreign}: building without tuning, verification and race")
    book, summary = RecordBook(request.records if request.trials else None), None
    if request.trials and not foreign and network.own:
        summary = search(
            own_layers(network), target, request.threads, book, trials=request.trials, minutes=request.minutes,
            tolerance=request.tolerance, place=job.place, progress=progress,
        )  # fmt: skip
        say(wording.searched(summary))
    built = build_network(network, job, book, searched=summary is not None)
    weighed: list[Weighed] = []
    if built and not job.whole:
        network, weighed = choose_pieces(network, built, job)
    return deliver(network, built, weighed, book, summary, job)


@dataclass(frozen=True)
class Job:
    """What every step of a compilation knows. ``foreign``: why this machine cannot run the result, or ""."""

    request: Request
    target: Target
    foreign: str
    command: str
    say: Say
    place: Place

    @property
    def whole(self) -> bool:
        """Whether kerf runs everything, as compiled by TVM: where no dense engine could run pieces beside it."""
        return bool(self.foreign) or not self.place.races_networks


def own_layers(network: Network) -> Network:
    """With the layers of kerf's pieces only: those that are to be tuned."""
    return replace(network, layers={name: layer for part in network.own for name, layer in part.layers.items()})


def build_network(network: Network, job: Job, book: RecordBook, searched: bool) -> Built | None:
    """kerf's pieces, compiled; None where there are none."""
    if not network.own:
        return None
    if searched and job.place.races_networks:
        built, said = better(network, job.target, job.request.threads, book)
        job.say(f"  {said}")
        return built
    return build(network, job.target, book, job.place.provenance())


def choose_pieces(network: Network, built: Built, job: Job) -> tuple[Network, list[Weighed]]:
    """The network with every piece on the engine that is fastest for it, and what each took."""
    if len(network.run_by) == 1:
        return network, []
    weighed = pieces.weigh(network, built, job.request.threads)
    if job.request.engine == "auto":
        network = pieces.faster(network, weighed)
    job.say(wording.weighed(network, weighed))
    return network, weighed


def deliver(
    network: Network,
    built: Built | None,
    weighed: list[Weighed],
    book: RecordBook,
    summary: Summary | None,
    job: Job,
) -> Bundle:
    """The bundle, written once it is verified, then raced; with a dense engine in kerf's place where that is faster."""
    request, say, out = job.request, job.say, job.request.out
    result = made(network, built, weighed, book, job, say, quick=False)
    if result is None:
        return Bundle(out, bundle.read_manifest(out), None, summary, job.foreign)
    ratio = result["speedup"]
    if request.engine == "auto" and not job.whole and network.engine == KERF and ratio and ratio["median"] < 1:
        say(wording.lost(ratio))
        result = made(plain(network, ratio["against"]), None, [], book, job, say, quick=True)
    return Bundle(out, bundle.read_manifest(out), result, summary, job.foreign)


def made(
    network: Network, built: Built | None, weighed: list[Weighed], book: RecordBook, job: Job, say: Say, quick: bool
) -> Report | None:
    """Writes the bundle, verified, into its place, then its race into its report; None where nothing can be run.

    ``quick``: for a race that is only to confirm.
    """
    request, place = job.request, job.place
    peak = None if job.foreign else place.peak(job.target, request.threads)
    rows = bundle_contents.layers(network, built, book, place.provenance(), peak, min(request.n)) if built else []
    parts = steps.steps(network, built)
    with bundle.replacing(request.out) as folder:
        described = bundle_contents.manifest(network, request, job.target, built, parts, rows)
        libraries = {steps.LIBRARY: built.export} if built else {}
        records = bundle_contents.used(book, network)
        bundle.write(folder, described, libraries, parts.weights, parts.models, records, built.code if built else b"")
        if job.foreign:
            return None
        proven = proof.of(folder, place, network, built, request, say)
        cpu, size = place.provenance()["cpu"], bundle.size_bytes(folder)
        rows_of_pieces = bundle_contents.pieces(network, weighed)
        result = bundle_contents.report(
            request, network, job.target, rows, rows_of_pieces, proven, cpu, size, job.command
        )
        report.write(result, folder)
    return result


def refuse(request: Request, target: Target) -> Request:
    """With its precision. Raises BadInput for what cannot work, before anything is done."""
    backend = backend_of(target)
    bundle.refuse_foreign(request.out)
    if backend.device and (request.rpc or request.threads > 1):
        raise BadInput(f"--target {request.target}: GPUs take neither --rpc nor --threads")
    precision = request.precision or backend.precisions[0]
    if precision not in backend.precisions:
        known = ", ".join(backend.precisions)
        raise BadInput(f"--precision {precision}: {backend.name.upper()} kernels compute in {known}")
    return replace(request, precision=precision)


def refuse_machine(request: Request, target: Target, weights_bytes: int, runs_here: bool) -> None:
    """Raises BadInput for what this machine lacks."""
    if triple := targets.triple(target):
        targets.linking(triple)
    else:
        preflight.refuse_compiler()
    preflight.refuse_temporary()
    preflight.refuse_out(request.out, weights_bytes + preflight.ROOM, runs_here)
    if runs_here:
        preflight.refuse_threads(request.threads)
    if request.trials:
        preflight.refuse_records(request.records)


def place_of(request: Request, device: str) -> Place:
    """Where candidates run."""
    if request.rpc:
        return Tracker.parse(request.rpc, request.rpc_key)
    return Gpu(request.precision) if device else Here()
