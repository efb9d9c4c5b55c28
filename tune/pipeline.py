"""compile(path) -> Bundle: .onnx -> convert -> search -> build -> verify -> race -> a folder that a device can run.

What model_tune.py does, as a function. What can be wrong with the input or the machine is found before any work is
done, and a bundle takes its place only when it has been verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tvm.target import Target

from kerf.deploy.compiler import preflight, targets
from kerf.deploy.compiler.build import Built, build
from kerf.deploy.embed import ort_model
from kerf.deploy.embed.toolchain import Toolchain, toolchain
from kerf.deploy.frontend import memory, refusals
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import KERF, Network
from kerf.deploy.frontend.soundness import explained
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.partition.plain import plain
from kerf.deploy.plans import fallback, pieces, steps
from kerf.deploy.plans.pieces import Weighed
from kerf.deploy.quantise.calibration import METHOD, MOST
from kerf.deploy.quantise.quantise import Quantised, quantise
from kerf.deploy.report import claims, report
from kerf.deploy.report.schema import Report
from kerf.deploy.runtime import bundle
from kerf.deploy.runtime.gpu_session import GpuSession
from kerf.deploy.runtime.manifest import Manifest
from kerf.deploy.runtime.session import Session, load
from kerf.errors import BadInput, Mismatch, Unsupported
from kerf.images import MEAN, STD
from kerf.kernels.backends import backend_of
from kerf.tune import bundle_contents, proof, wording
from kerf.tune.places import Gpu, Here, Place
from kerf.tune.progress import Progress, Say
from kerf.tune.remote import Tracker
from kerf.tune.request import DENSE_ENGINES, RECORDS, Request, bundle_of, quantised_of
from kerf.tune.search import Summary, search
from kerf.tune.whole_network import better

Shapes = Mapping[str, Sequence[int]]  # of inputs, by name


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
    shapes: Shapes | Sequence[Shapes] | None = None,
    trials: int = 1000,
    minutes: float | None = None,
    tolerance: float = 0.005,
    against: Iterable[str] = DENSE_ENGINES,
    seconds: float = 10.0,
    engine: str = "auto",
    format: str = "bundle",
    records: str | Path = RECORDS,
    rpc: str = "",
    rpc_key: str = "",
    int8: bool = False,
    calibration: str | Path | None = None,
    calibration_method: str = METHOD,
    calibration_images: int = MOST,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    say: Say | None = None,
) -> Bundle:
    """Compiles the .onnx file at ``path`` into the folder ``out`` (<name>.kerf beside it), and proves what it is worth.

    n: rows of a block, the N of 1xN pruning; of several, each layer has the largest that finds its zeros.
    sparsity: least share of zero blocks for a layer to go sparse. target: "native", an LLVM CPU name,
    "llvm -mcpu=... -mtriple=..." or "cuda -arch=sm_90"; precision: of a GPU's products ("f16" by default, "tf32",
    "f32"). threads: of kerf and of the engines that it races. batch: images per call, where the file leaves it open.
    shapes: sizes of inputs that the file leaves open, {"images": (1, 3, 640, 640)}; of several such, the bundle has a
    plan for each, and whatever other sizes it is given run in ONNX Runtime.
    trials, minutes: the most that the search measures, and for how long; 0 trials compiles untuned; it ends before when
    less than ``tolerance`` of the network's time is to be gained. Measurements are kept in the file ``records`` and
    never made twice. against, seconds: dense engines to race, those installed, and for how long. engine: "auto" lets a
    dense engine run what it runs faster, if need be all of it; "kerf" keeps whatever kerf can run. rpc ("HOST:PORT" of
    a TVM tracker), rpc_key: the devices to measure on. int8: the network is quantised first, as kerf.quantise does, by
    ``calibration`` (a folder of images or an .npz of arrays by input name) and its method, at most so many samples, and
    the images' mean and std; the quantised file is kept beside the bundle, by default <name>.int8.kerf. say: gets a
    line for each step; by default nobody does.

    Raises BadInput or FileNotFoundError before anything is done for what cannot work; Mismatch when the compiled
    network computes something else than the file, DeviceLost when the devices are gone: then ``out`` is what it was.
    """
    path = Path(path)
    request = Request(
        path=path, out=Path(out) if out else bundle_of(path, int8), n=(n,) if isinstance(n, int) else tuple(n),
        sparsity=sparsity, target=target, precision=precision or "", threads=threads, batch=batch, trials=trials,
        shapes=tuple(each_of(shapes or ())), minutes=minutes, tolerance=tolerance, against=tuple(against),
        seconds=seconds, engine=engine, format=format, records=Path(records), rpc=rpc, rpc_key=rpc_key,
        int8=int8, calibration=Path(calibration) if calibration else None, calibration_method=calibration_method,
        calibration_images=calibration_images, mean=tuple(mean), std=tuple(std),
    )  # fmt: skip
    return carry_out(request, wording.call(request), say)


def each_of(shapes: Shapes | Sequence[Shapes]) -> list[dict[str, tuple[int, ...]]]:
    """One plan's shapes, or several plans', as a list."""
    several = [shapes] if isinstance(shapes, Mapping) else shapes
    return [{name: tuple(sizes) for name, sizes in plan.items()} for plan in several]


def carry_out(request: Request, command: str, say: Say | None = None, progress: Progress | None = None) -> Bundle:
    """The whole stage. ``command``: what makes the same bundle again, for its report."""
    say = say or (lambda _: None)
    progress = progress or Progress(say)
    preflight.refuse_tvm()
    several = targets.several(request.target, request.threads)
    target = next((t for t in several if not targets.foreign(t)), several[0])  # what is tuned, and raced
    tools = toolchain() if request.format == "ort" else None
    foreign = "" if request.rpc else targets.foreign(target) or ""
    request = refuse(request, target)
    networks = converted(request, target)
    for network in networks:
        memory.refuse(request.path, network.graph)
    refuse_machine(request, target, networks[0].weights_bytes, runs_here=not (foreign or request.rpc))
    say(request.describe())
    place = place_of(request, backend_of(target).device if not foreign else "")
    f32, made = (request.path if request.int8 else None), None
    if request.int8:
        request, made = quantised_first(request, say)
        networks = converted(request, target)
    job = Job(request, target, foreign, command, say, place, f32, made, [t for t in several if t is not target], tools)
    if (backend_of(target).device or request.rpc) and len(networks[0].inputs) + len(networks[0].outputs) != 2:
        raise BadInput(f"{request.path}: several inputs or outputs; on GPUs and over --rpc a network has one of each")
    with explained(request.path):
        return _compiled(networks, job, progress)


def _compiled(networks: Sequence[Network], job: Job, progress: Progress) -> Bundle:
    request, target, foreign, say, place = job.request, job.target, job.foreign, job.say, job.place
    networks = [pieces.whole(n) if job.whole else pieces.able(n, target, say) for n in networks]
    if request.engine == KERF and not networks[0].own:
        raise refusals.nothing(request.path, networks[0].graph)
    say(wording.layers(networks[0], request))
    if foreign:
        say(f"{foreign}: building without tuning, verification and race")
    book, summary = RecordBook(request.records if request.trials else None), None
    if request.trials and not foreign and any(n.own for n in networks):
        summary = search(
            own_layers(networks), target, request.threads, book, trials=request.trials, minutes=request.minutes,
            tolerance=request.tolerance, place=place, progress=progress,
        )  # fmt: skip
        say(wording.searched(summary))
    try:
        plans = [planned(network, job, book, searched=summary is not None) for network in networks]
        for other in job.others:
            plans += variants(other, job, book)
        return deliver(plans, book, summary, job)
    except Unsupported as error:  # by an engine, of a piece
        raise Unsupported(f"{request.path}: {error}") from error


def converted(request: Request, target: Target) -> list[Network]:
    """The file, for each of the shapes."""
    takes_integers = not backend_of(target).device  # kernels of GPUs take floats
    return [
        convert(request.path, request.n, request.sparsity, request.batch, request.precision, shapes, takes_integers)
        for shapes in request.shapes or ({},)
    ]


def quantised_first(request: Request, say: Say) -> tuple[Request, Quantised]:
    """The request for the quantised file, which is written beside the bundle. Raises BadInput."""
    shapes = request.shapes[0] if request.shapes else {}
    made = quantise(request.path, quantised_of(request.out), request.samples, shapes=shapes)
    say(str(made))
    return replace(request, path=made.path), made


@dataclass(frozen=True)
class Job:
    """What every step of a compilation knows. ``foreign``: why this machine cannot run the result, or ""; ``f32``: the
    file that ``quantised`` was made of, where that was asked.
    """

    request: Request
    target: Target
    foreign: str
    command: str
    say: Say
    place: Place
    f32: Path | None = None
    quantised: Quantised | None = None
    others: Sequence[Target] = ()  # for which the bundle has code, too
    tools: Toolchain | None = None  # that --format ort needs

    @property
    def whole(self) -> bool:
        """Whether kerf runs everything, as compiled by TVM: where no dense engine could run pieces beside it."""
        return bool(self.foreign) or not self.place.races_networks


@dataclass(frozen=True)
class Planned:
    """A network for inputs of fixed sizes. ``built``: None where no piece is kerf's; ``weighed``: what pieces took."""

    network: Network
    built: Built | None
    weighed: Sequence[Weighed] = ()


def variants(target: Target, job: Job, book: RecordBook) -> list[Planned]:
    """The plans once more, untuned, for another target of the same bundle; none where no piece is kerf's."""
    foreign = targets.foreign(target) or ""
    other = replace(job, target=target, foreign=foreign)
    networks = converted(job.request, target)
    networks = [pieces.whole(n) if other.whole else pieces.able(n, target, lambda _: None) for n in networks]
    job.say(f"{targets.describe(target)}: {foreign or 'verified here, too'}")
    return [p for p in (planned(n, other, book, searched=False) for n in networks) if p.built]


def own_layers(networks: Sequence[Network]) -> Network:
    """With the layers of kerf's pieces only, for all sizes: those that are to be tuned."""
    parts = [(i, part) for i, network in enumerate(networks) for part in network.own]
    layers = {f"{name}@{i}" if i else name: layer for i, part in parts for name, layer in part.layers.items()}
    return replace(networks[0], layers=layers)


def planned(network: Network, job: Job, book: RecordBook, searched: bool) -> Planned:
    """Compiled, with every piece on the engine that is fastest for it."""
    if not network.own:
        return Planned(network, None)
    if searched and job.place.races_networks:
        built, said = better(network, job.target, job.request.threads, book)
        job.say(f"  {said}")
    else:
        built = build(network, job.target, book, job.place.provenance())
    if len(network.run_by) == 1:
        return Planned(network, built)
    weighed = pieces.weigh(network, built, job.request.threads)
    if job.request.engine == "auto":
        network = pieces.faster(network, weighed)
    job.say(wording.weighed(network, weighed))
    return Planned(network, built if network.own else None, weighed)


def deliver(plans: Sequence[Planned], book: RecordBook, summary: Summary | None, job: Job) -> Bundle:
    """The bundle in its place, with all that was asked for in it; else what was there stays."""
    request, first = job.request, plans[0].network
    with bundle.replacing(request.out) as folder:
        result = chosen(plans, book, job, folder)
        if job.tools:
            ort_model.proven(folder, job.tools, first.path, first.inputs, request.precision, request.threads)
    return Bundle(request.out, bundle.read_manifest(request.out), result, summary, job.foreign)


def chosen(plans: Sequence[Planned], book: RecordBook, job: Job, to: Path) -> Report | None:
    """The bundle, verified and raced; with a dense engine in kerf's place where that is faster."""
    request, whole = job.request, fallback.model(job.request.path)
    first, result = plans[0], made(plans, whole, book, job, to)
    ratio = proof.alike(result) if result else None
    if request.engine == "auto" and not job.whole and first.network.engine == KERF and ratio and ratio["median"] < 1:
        job.say(wording.lost(ratio))
        mine = targets.describe(job.target)  # the others would run the same then
        plans = [p for p in plans if not p.built or targets.describe(p.built.target) == mine]
        plans = [Planned(plain(p.network, ratio["against"].partition(" ")[0]), None) for p in plans]
        try:
            result = made(plans, whole, book, job, to, instead=True)
        except Mismatch as error:  # its integers saturate, say: the bundle that was made stays
            job.say(f"{error}; kerf's pieces stay")
    return result


def made(
    plans: Sequence[Planned], whole: fallback.Whole | None, book: RecordBook, job: Job, to: Path, instead: bool = False
) -> Report | None:
    """Writes the bundle, verified and raced, to ``to``; None where this machine cannot run it. ``instead``: a
    dense engine takes kerf's place, and is held to what kerf is.
    """
    request, place, first = job.request, job.place, plans[0]
    peak = partial(place.peak, job.target, request.threads) if not job.foreign else lambda integers: None
    versions = place.provenance()
    rows = (
        bundle_contents.layers(first.network, first.built, book, versions, peak, min(request.n)) if first.built else []
    )
    parts = steps.together([steps.steps(p.network, p.built, f"{i}_" if i else "") for i, p in enumerate(plans)])
    if len({str(p.built.target) for p in plans if p.built}) > 1:
        for entry, p in zip(parts.entries, plans):
            if p.built:
                entry |= {"target": targets.describe(p.built.target), "needs": targets.needs(p.built.target)}
    with bundle.replacing(to) as folder:
        described = bundle_contents.manifest(first.network, request, job.target, first.built, parts, rows, whole)
        libraries = {str(entry["library"]): p.built.export for entry, p in zip(parts.entries, plans) if p.built}
        models = parts.models | ({fallback.FILE: whole.contents} if whole else {})
        records = bundle_contents.used(book, [p.network for p in plans])
        code = first.built.code if first.built else b""
        programs = [] if backend_of(job.target).device else [p.built.programs if p.built else () for p in plans]
        bundle.write(folder, described, libraries, parts.weights, models, records, code, programs)
        if job.foreign:
            return None
        proven = proof.of(folder, place, [(p.network, p.built) for p in plans], request, job.say, job.f32, instead)
        if proven["quantised"] is not None and job.quantised:
            proven["quantised"] |= bundle_contents.calibrated(job.quantised, request)
        size, rows_of_pieces = bundle.size_bytes(folder), bundle_contents.pieces(first.network, first.weighed)
        result = bundle_contents.report(
            request, first.network, job.target, rows, rows_of_pieces, proven, versions["cpu"], size, job.command
        )
        report.write(result, folder)
    return result


def refuse(request: Request, target: Target) -> Request:
    """With its precision. Raises BadInput for what cannot work, before anything is done."""
    backend = backend_of(target)
    bundle.refuse_foreign(request.out)
    if len(targets.several(request.target, 1)) > 1 and (request.rpc or request.format == "ort"):
        raise BadInput(f"--target {request.target}: several targets go with neither --rpc nor --format ort")
    if backend.device and (request.rpc or request.threads > 1):
        raise BadInput(f"--target {request.target}: GPUs take neither --rpc nor --threads")
    if request.format == "ort" and (backend.device or targets.foreign(target)):
        raise BadInput("--format ort: is compared in ONNX Runtime here, so --target is a CPU like this machine's")
    if request.int8 and backend.device:
        raise BadInput(f"--int8: kernels for {backend.name.upper()} compute with floats; leave it out, or take a CPU")
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
