"""What pruning costs layer by layer, and the shares of layers that follow from it: measured, said, written down."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kerf import files, gate
from kerf.compress.command import deployment
from kerf.compress.command.folder import open_job_dir
from kerf.compress.command.job import Job
from kerf.compress.command.planning import allocates, timed
from kerf.compress.pruning import allocation, sensitivity
from kerf.compress.pruning.allocation import Harm
from kerf.compress.pruning.price_curves import PriceCurves, price_curves
from kerf.compress.training import distributed
from kerf.compress.training.progress import Reporter
from kerf.compress.training.train import sample_of
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput


def sensitivities_of(job: Job, reporter: Reporter) -> sensitivity.Sensitivity:
    """All that `kerf sensitivity` does."""
    distributed.on_first(partial(open_job_dir, job.args, reporter))
    return measured(job, reporter)


def priced(job: Job, name: str) -> PriceCurves:
    """By the method's own prices, written to the job's folder under that name."""
    sample = sample_of(job.data, job.device)
    found = price_curves(job.model.to(job.device), job.recipe, job.graph, job.example.to(job.device), sample)
    distributed.on_first(lambda: files.write_json(job.args.job_dir / f"{name}.json", found.to_json()))
    return found


def measured(job: Job, reporter: Reporter, name: str = "sensitivity") -> sensitivity.Sensitivity:
    """Measured, and written to the job's folder under that name, as JSON and as a picture."""
    args, folder = job.args, job.args.job_dir
    try:
        result = sensitivity.measure(
            job.model, job.recipe, job.graph, job.example, job.data.val or job.data.test,
            -(-args.calibration // args.eval_batch_size), job.device,
            report=partial(reporter.count, "sensitivity, layers"),
        )  # fmt: skip
    finally:
        reporter.stop()

    def write() -> None:
        files.write_json(folder / f"{name}.json", result.to_json())
        files.write(folder / f"{name}.svg", sensitivity.picture(result))

    distributed.on_first(write)
    return result


def at_height(job: Job, n: int) -> Job:
    """The job with blocks of n kernels, if it prunes blocks."""
    units = job.recipe.granularity
    if not isinstance(units, OneByN) or units.n == n:
        return job
    return replace(job, recipe=replace(job.recipe, granularity=replace(units, n=n)))


def allocate(job: Job, reporter: Reporter) -> tuple[Job, allocation.Allocation | None]:
    """The job with shares by layer, and these, where they are asked for."""
    if not allocates(job.args):
        return job, None
    harm: dict[int, Harm] = {}
    by_price = job.args.allocate == "obs"
    for n in () if job.args.resume else job.args.heights:
        name = "prices" if by_price else "sensitivity"
        name = name if len(job.args.heights) == 1 else f"{name}-{n}"
        harm[n] = priced(at_height(job, n), name) if by_price else measured(at_height(job, n), reporter, name)
    shares = distributed.on_first(partial(choose, job, harm, reporter))
    by_layer = shares.shares.values()
    reporter.say(
        f"{shares.removed:.1%} of the MACs of {len(by_layer)} layers go, "
        f"{min(by_layer):.0%} to {max(by_layer):.0%} of each layer"
    )
    if shares.heights:
        taken = [n for path, n in shares.heights.items() if shares.shares[path]]
        reporter.say("blocks: " + ", ".join(f"1x{n} in {taken.count(n)} layers" for n in sorted({*taken})))
    budget = replace(job.budget, sparsity=shares.removed)
    return replace(job, recipe=shares.recipe(job.recipe), budget=budget), shares


def choose(job: Job, harm: dict[int, Harm], reporter: Reporter) -> allocation.Allocation:
    """Chosen and written to allocation.json; a resumed run takes the shares that it began with."""
    file = job.args.job_dir / "allocation.json"
    if job.args.resume:
        return _read(file)
    if timed(job.args):
        shares = deployment.allocated_by_time(job, harm, reporter)
    else:
        units = job.recipe.granularity.split(job.model, job.graph, job.example)
        shares = allocation.by_macs(units, harm[job.args.N], job.budget.sparsity)
    files.write_json(file, shares.to_json())
    return shares


def _read(file: Path) -> allocation.Allocation:
    try:
        return allocation.Allocation(**gate.read_json(file, dict[str, Any], "the shares of a run"))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{file} does not hold what a run wrote there ({error}): start the run again") from None
