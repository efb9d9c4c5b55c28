"""A run itself: pruned and trained, or evaluated alone; and what it leaves when it is whole."""

import json
import time
from dataclasses import replace
from functools import partial
from typing import Any

from kerf import files
from kerf.compress.command import deployment
from kerf.compress.command.allocating import allocate
from kerf.compress.command.args import Args
from kerf.compress.command.folder import best, last, open_job_dir
from kerf.compress.command.job import Job
from kerf.compress.command.summary import Integers, Result, Summary, summarise
from kerf.compress.pruning.run import Outcome, run
from kerf.compress.pruning.schedules import dense_epochs
from kerf.compress.training import checkpoint, distributed
from kerf.compress.training.board import Board
from kerf.compress.training.fake_quantised import fine_tune
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.progress import Reporter
from kerf.compress.training.quantise import quantised, to_json
from kerf.compress.training.train import Optim, evaluate, skipped_images


def prune_and_train(job: Job, reporter: Reporter) -> Summary:
    args, began = job.args, time.monotonic()
    folder = distributed.on_first(partial(open_job_dir, args, reporter))
    job, shares = allocate(job, reporter)
    explain(job, reporter)
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
        optim=optim_of(args),
        recalibration=args.recalibrate,
        device=job.device,
        file=last(folder),
        resume=bool(args.resume),
        on_history=keep_rows,
        reporter=reporter,
    )
    if args.qat_epochs:
        fine_tune(
            job.model, job.data, optim_of(args), args.qat_epochs, outcome.masks, seed=args.seed, device=job.device,
            history=outcome.history, on_history=keep_rows, reporter=reporter,
        )  # fmt: skip
    job.model.cpu().eval()
    result = Result(
        outcome.final, outcome.grids, skipped_images(job.data), outcome.dense, outcome.pruned, job.recipe.rearrange,
        outcome.kept, shares,
    )  # fmt: skip

    def write() -> Summary:
        save(job, outcome)
        return finish(job, result, reporter, began)

    return distributed.on_first(write)


def evaluate_only(job: Job, reporter: Reporter) -> Summary:
    began = time.monotonic()
    distributed.on_first(partial(open_job_dir, job.args, reporter))
    final = evaluate(quantised(job.model, job.grids), job.data.test, job.device)
    job.model.cpu()
    result = Result(final, job.grids, skipped_images(job.data))
    return distributed.on_first(partial(finish, job, result, reporter, began))


def explain(job: Job, reporter: Reporter) -> None:
    """Says what a run does that its flags do not show."""
    if job.budget.dense_epochs and job.method != "dense":
        first = dense_epochs(job.recipe.schedule(job.budget))
        then = f"training the dense network first, {first} epochs, then pruning it"
        reporter.say(f"no --pretrained_model: {then if first else f'method {job.method} trains from random weights'}")
    if job.grids:
        reporter.say(
            f"{job.args.pretrained_model} is quantised: its weights are trained on in f32, its inputs' grids forgotten"
        )


def optim_of(args: Args) -> Optim:
    rate = LearningRate(
        args.lr, policy=args.lr_policy, warmup=args.warmup_length, adjust=args.lr_adjust, gamma=args.lr_gamma,
        milestones=args.lr_decay_step,
    )  # fmt: skip
    return Optim(
        rate, args.momentum, args.nesterov, args.weight_decay, args.label_smoothing, args.distill,
        args.distill_features, args.ema, args.precision,
    )  # fmt: skip


def save(job: Job, outcome: Outcome) -> None:
    """checkpoint/best.safetensors, whose header says what the network is and which channels it has left."""
    kept = job.kept | {n: job.kept[n][index] if n in job.kept else index for n, index in outcome.kept.items()}
    state = {
        "arch": job.args.arch,
        "num_classes": job.data.num_classes,
        "image_size": job.data.image_size,
        "method": job.method,
        "kept": {name: index.tolist() for name, index in kept.items()},
    }
    if outcome.grids:
        state["quantised"] = to_json(outcome.grids)
    checkpoint.save(best(job.args.job_dir), job.model.state_dict(), state)


def on_integers(job: Job, result: Result, reporter: Reporter) -> Result:
    """With the accuracy of the quantised file, which is written."""
    module, images = deployment.on_integers(job, reporter)
    measured, f32 = evaluate(module, job.data.test), result.final
    reporter.say(f"int8: test top-1 {measured.top1:.2f} %, f32 {f32.top1:.2f} %")
    integers: Integers = {
        "top1_f32": f32.top1,
        "top5_f32": f32.top5,
        "images": images,
        "ranges": job.args.quantise_ranges,
        "qat_epochs": job.args.qat_epochs,
    }
    return replace(result, final=measured, integers=integers)


def finish(job: Job, result: Result, reporter: Reporter, began: float) -> Summary:
    """Writes predictions.json, model.onnx if asked, and last summary.json, and returns that: now the run is whole."""
    args, folder = job.args, job.args.job_dir
    if args.quantise:
        result = on_integers(job, result, reporter)
    final = result.final
    files.write_json(folder / "predictions.json", final.by_name(job.data.test.names))
    if args.export_onnx and not args.quantise:
        deployment.exported(job, result.grids, reporter)
    summary = summarise(job, result)
    if result.shares and result.shares.target_ms:
        summary["latency"] = deployment.latency_of(job, result.shares, reporter)
    if args.bad_images == "skip":
        summary["images_skipped"] = result.skipped
        reporter.say(f"{result.skipped} images could not be read and were skipped")
    summary["seconds"] = round(time.monotonic() - began, 1)
    files.write_json(folder / "summary.json", summary)
    reporter.say(
        f"test top-1 {final.top1:.3f} %  top-5 {final.top5:.3f} %  ({final.images} images); results in {folder}"
    )
    return summary
