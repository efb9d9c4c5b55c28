"""kerf-prune, and `python imagenet.py`: flags in; a pruned network, its ONNX file and its numbers in --job_dir out."""

import json
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kerf import (
    console,  # here, and in no other file, the two sides meet
    files,
)
from kerf.compress.command import show
from kerf.compress.command.args import Args, continued, parse
from kerf.compress.command.device import device_of
from kerf.compress.command.job import Job
from kerf.compress.command.planning import allocates, method_of, plan, timed
from kerf.compress.command.summary import summarise
from kerf.compress.data.batches import images_of
from kerf.compress.data.sets import Options, open_data
from kerf.compress.models import MODELS, create
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import allocation, recipe, sensitivity
from kerf.compress.pruning.run import run
from kerf.compress.training import checkpoint, distributed
from kerf.compress.training.board import Board, writer
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.loading import load_grids, load_network
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import Grids, quantised, to_json
from kerf.compress.training.train import Metrics, Optim, evaluate, skipped_images
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput

WRITTEN = ("config.json", "metrics.jsonl", "summary.json", "predictions.json", "model.onnx", "checkpoint")
WRITTEN += ("allocation.json", "sensitivity*.json", "sensitivity*.svg", "tensorboard")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one line on stderr for input that cannot be used, or 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    job_dir = None
    try:
        if argv and argv[0] in show.COMMANDS:
            show.run(argv)
            return 0
        sensitivities = argv[:1] == ["sensitivity"]
        if not {"-h", "--help"} & set(argv):
            distributed.start()
        args, notes = distributed.on_first(lambda: continued(*parse(argv[1:] if sensitivities else argv)))
        job_dir = args.job_dir
        with console.speaking(args.quiet, args.json):
            reporter = Reporter(quiet=not distributed.first())
            for note in notes:
                reporter.say(note)
            job = distributed.together(partial(prepare, args))
            for note in job.data.notes:
                reporter.say(note)
            check_alike(job)
            work = sensitivities_of if sensitivities else evaluate_only if args.pruned_model else prune_and_train
            found = work(job, reporter)
        if args.json:
            distributed.on_first(lambda: console.answer({**found, "files": written(job_dir)}))
        elif sensitivities:
            distributed.on_first(lambda: show.sensitivities(sensitivity.Sensitivity(**found)))
        distributed.stop()
        return 0
    except distributed.INPUT_ERRORS as error:
        if distributed.is_first_to_fail():
            if debug:
                traceback.print_exc()
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return distributed.leave(2)
    except KeyboardInterrupt:
        if distributed.is_first_to_fail():
            hint = f"; continue with --resume {job_dir}" if job_dir and last(job_dir).is_file() else ""
            print(f"interrupted{hint}", file=sys.stderr)
        return distributed.leave(130)


def prepare(args: Args) -> Job:
    """Reads and checks all input before anything is trained or written. Raises ValueError or OSError with one line."""
    method, device = method_of(args), device_of(args)
    if args.arch not in MODELS:
        raise BadInput(f"unknown --arch {args.arch}: expected one of {', '.join(MODELS)}")
    if args.tensorboard:
        writer()
    weights = args.pruned_model or args.pretrained_model
    if weights not in (None, "torchvision") and not Path(weights).is_file():
        raise FileNotFoundError(f"no weights at {weights}: expected a .safetensors, .pth or .pt file")
    if args.resume and distributed.first() and not last(args.resume).is_file():
        raise FileNotFoundError(f"no finished epoch to resume in {args.resume}: start the run again")
    torch.manual_seed(args.seed)
    data = open_data(
        args.data_set,
        Options(
            path=args.data_path,
            train_batch=args.train_batch_size,
            eval_batch=args.eval_batch_size,
            workers=args.workers,
            image_size=args.image_size,
            num_classes=args.num_classes,
            subset=args.subset,
            bad_images=args.bad_images,
            dali_device=str(device) if args.use_dali else None,
        ),
    )
    trains = not args.pruned_model and (args.finetune_epochs or args.recalibrate or (args.num_epochs and not weights))
    if trains and data.train is None:
        raise BadInput(f"{args.data_path} has no train folder: give --num_epochs 0, or --evaluate FILE")
    if trains and (batch := images_of(data.train)) < distributed.world():
        raise BadInput(f"{batch} images in a training batch for {distributed.world()} processes: expected one for each")
    model = create(args.arch, data.num_classes, data.image_size, pretrained=weights == "torchvision")
    model.eval()
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    given = weights not in (None, "torchvision")
    kept = load_network(model, Path(weights), args.arch, example) if given else {}
    grids = load_grids(model, Path(weights)) if given else {}
    graph = DependencyGraph.trace(model, example)
    chosen, budget = plan(args, method, weights)
    if not args.pruned_model and budget.sparsity and method != "dense":
        recipe.check(model, chosen, graph, example, budget.sparsity)
    return Job(args, method, device, data, model, graph, chosen, budget, kept, grids, cost.count(model, example))


def check_alike(job: Job) -> None:
    """Raises ValueError on every process where one has read other images or another network than the others."""
    if distributed.alone():
        return
    parts = (job.data.train, job.data.val, job.data.test)
    distributed.check_same("images", [part and zlib.crc32("\n".join(part.names).encode()) for part in parts])
    distributed.check_same("weights", {name: tuple(t.shape) for name, t in job.model.state_dict().items()})
    distributed.agree(job.model.state_dict(), "in the beginning")


def last(job_dir: Path) -> Path:
    return job_dir / "checkpoint" / "last.safetensors"


def open_job_dir(job: Job, reporter: Reporter) -> Path:
    """Creates --job_dir; a new run replaces what an earlier one wrote there, and nothing else."""
    folder = job.args.job_dir
    folder.mkdir(parents=True, exist_ok=True)
    old = [path for name in WRITTEN for path in folder.glob(name)]
    if old and not job.args.resume:
        reporter.say(f"replacing the run in {folder}")
        for path in old:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not job.args.resume:
        files.write_json(folder / "config.json", job.args.as_json())
    reporter.say("  ".join(f"{k}={v}" for k, v in job.args.as_json().items()))
    return folder


def written(folder: Path) -> list[str]:
    """What a run has left in its folder."""
    return [str(path) for name in WRITTEN for path in sorted(folder.glob(name))]


def sensitivities_of(job: Job, reporter: Reporter) -> dict[str, Any]:
    distributed.on_first(partial(open_job_dir, job, reporter))
    return sensitivity_of(job, reporter).to_json()


def sensitivity_of(job: Job, reporter: Reporter, name: str = "sensitivity") -> sensitivity.Sensitivity:
    """Measured, and written to the job's folder under that name, as JSON and as a picture."""
    args, folder = job.args, job.args.job_dir
    try:
        found = sensitivity.measure(
            job.model, job.recipe, job.graph, job.example, job.data.val or job.data.test,
            -(-args.calibration // args.eval_batch_size), job.device,
            report=partial(reporter.count, "sensitivity, layers"),
        )  # fmt: skip
    finally:
        reporter.stop()

    def write() -> None:
        files.write_json(folder / f"{name}.json", found.to_json())
        files.write(folder / f"{name}.svg", sensitivity.picture(found))

    distributed.on_first(write)
    return found


def at_height(job: Job, n: int) -> Job:
    """The job with blocks of n kernels, if it prunes blocks."""
    units = job.recipe.granularity
    if not isinstance(units, OneByN) or units.n == n:
        return job
    return replace(job, recipe=replace(job.recipe, granularity=replace(units, n=n)))


def allocate(job: Job, reporter: Reporter) -> Job:
    """The job with shares by layer where they are asked for; a resumed run takes those it began with."""
    args, file = job.args, job.args.job_dir / "allocation.json"
    if not allocates(args):
        return job
    measured = {}
    for n in () if args.resume else args.heights:
        name = "sensitivity" if len(args.heights) == 1 else f"sensitivity-{n}"
        measured[n] = sensitivity_of(at_height(job, n), reporter, name)

    def choose() -> allocation.Allocation:
        if args.resume:
            return allocation.Allocation(**json.loads(file.read_text()))
        if timed(args):
            from kerf.deploy.export import export
            from kerf.tune.network_timer import Clock

            found = allocation.by_time(
                job.model, job.recipe, job.graph, job.example, measured, Clock(args.heights, args.target, args.threads),
                export, target_ms=args.latency_target_ms, speedup=args.speedup_target, say=reporter.say,
            )  # fmt: skip
        else:
            units = job.recipe.granularity.split(job.model, job.graph, job.example)
            found = allocation.by_macs(units, measured[args.N], job.budget.sparsity)
        files.write_json(file, found.to_json())
        return found

    found = distributed.on_first(choose)
    least, most = min(found.shares.values()), max(found.shares.values())
    reporter.say(
        f"{found.removed:.1%} of the MACs of {len(found.shares)} layers go, {least:.0%} to {most:.0%} of each layer"
    )
    if found.heights:
        taken = [n for path, n in found.heights.items() if found.shares[path]]
        reporter.say("blocks: " + ", ".join(f"1x{n} in {taken.count(n)} layers" for n in sorted(set(taken))))
    return replace(job, recipe=found.recipe(job.recipe), budget=replace(job.budget, sparsity=found.removed))


def prune_and_train(job: Job, reporter: Reporter) -> dict[str, Any]:
    args, began = job.args, time.monotonic()
    folder = distributed.on_first(partial(open_job_dir, job, reporter))
    job = allocate(job, reporter)
    if job.budget.dense_epochs and job.method != "dense":
        epochs = job.budget.dense_epochs
        reporter.say(f"no --pretrained_model: training the dense network first, {epochs} epochs, then pruning it")
    rate = LearningRate(
        args.lr, policy=args.lr_policy, warmup=args.warmup_length, adjust=args.lr_adjust, gamma=args.lr_gamma,
        milestones=args.lr_decay_step,
    )  # fmt: skip
    if job.grids:
        reporter.say(
            f"{args.pretrained_model} is quantised: its weights are trained on in f32, its inputs' grids forgotten"
        )
    if args.rearrange and not job.recipe.rearrange:
        reporter.say(f"--rearrange orders filters for blocks; method {job.method} has none, so it changes nothing")
    board = Board(folder) if args.tensorboard else None

    def keep_rows(rows: list[dict[str, Any]]) -> None:
        files.write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if board:
            board.write(rows, job.model)

    outcome = run(
        job.model,
        job.recipe,
        job.data,
        job.budget,
        args.seed,
        graph=job.graph,
        optim=Optim(
            rate, args.momentum, args.nesterov, args.weight_decay, args.label_smoothing, args.distill, args.precision
        ),
        recalibration=args.recalibrate,
        device=job.device,
        file=last(folder),
        resume=bool(args.resume),
        on_history=keep_rows,
        reporter=reporter,
    )
    model = job.model.cpu().eval()
    skipped = skipped_images(job.data)
    kept = job.kept | {n: job.kept[n][index] if n in job.kept else index for n, index in outcome.kept.items()}
    state = {
        "arch": args.arch,
        "num_classes": job.data.num_classes,
        "image_size": job.data.image_size,
        "method": job.method,
        "kept": {name: index.tolist() for name, index in kept.items()},
    }
    if outcome.grids:
        state["quantised"] = to_json(outcome.grids)

    def write() -> dict[str, Any]:
        checkpoint.save(folder / "checkpoint" / "best.safetensors", model.state_dict(), state)
        return finish(
            job, reporter, outcome.final, skipped, began, outcome.grids,
            rearranged=job.recipe.rearrange, dense=outcome.dense, pruned=outcome.pruned, kept=outcome.kept,
        )  # fmt: skip

    return distributed.on_first(write)


def evaluate_only(job: Job, reporter: Reporter) -> dict[str, Any]:
    began = time.monotonic()
    distributed.on_first(partial(open_job_dir, job, reporter))
    metrics = evaluate(quantised(job.model, job.grids), job.data.test, job.device)
    job.model.cpu()
    return distributed.on_first(partial(finish, job, reporter, metrics, skipped_images(job.data), began, job.grids))


def finish(
    job: Job,
    reporter: Reporter,
    final: Metrics,
    skipped: int,
    began: float,
    grids: Grids,
    rearranged: bool | None = None,
    dense: Metrics | None = None,
    pruned: Metrics | None = None,
    kept: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Writes predictions.json, model.onnx if asked, and last summary.json, and returns that: now the run is whole."""
    args, folder = job.args, job.args.job_dir
    files.write_json(folder / "predictions.json", final.by_name(job.data.test.names))
    if args.export_onnx:
        from kerf.deploy.export import export

        path = folder / "model.onnx"
        export(job.model, job.example, path, grids=grids, reference=quantised(job.model, grids))
        reporter.say(f"exported {path}{' with Q/DQ, for ONNX Runtime' if grids else ''}")
    summary = summarise(job, final, grids, rearranged, dense, pruned)
    widths = {s.name: s.width for s in job.graph.sets}
    summary["widths"] = {name: [widths[name], len(index)] for name, index in (kept or {}).items()}
    if timed(args):
        summary["latency"] = latency_of(job, reporter)
    if args.bad_images == "skip":
        summary["images_skipped"] = skipped
        reporter.say(f"{skipped} images could not be read and were skipped")
    summary["seconds"] = round(time.monotonic() - began, 1)
    files.write_json(folder / "summary.json", summary)
    reporter.say(
        f"test top-1 {final.top1:.3f} %  top-5 {final.top5:.3f} %  ({final.images} images); results in {folder}"
    )
    return summary


def latency_of(job: Job, reporter: Reporter) -> dict[str, Any]:
    """Of the final network, built and raced, against what was asked."""
    from kerf.deploy.export import export
    from kerf.tune.network_timer import LEAST_SPARSE, Clock

    asked = json.loads((job.args.job_dir / "allocation.json").read_text())
    path = export(job.model, job.example, job.args.job_dir / "model.onnx")
    heights = job.args.heights
    kerf, dense, engine = Clock(heights, job.args.target, job.args.threads).network_ms(path)
    reporter.say(
        f"built: {kerf:.3f} ms, {dense / kerf:.2f}x of {engine} ({dense:.3f} ms) in the same race; asked for "
        f"{asked['target_ms']:.3f} ms, {asked['dense_ms'] / asked['target_ms']:.2f}x of {asked['dense_engine']} then"
    )
    blocks = " ".join(map(str, heights))
    reporter.say(f"to build it: python model_tune.py --onnx_path {path} --bsr {blocks} --sparsity {LEAST_SPARSE}")
    return {"ms": kerf, "dense_ms": dense, "engine": engine, "asked": asked}
