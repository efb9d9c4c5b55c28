"""The one fit() and evaluate(). They know no method: a Pressure and `after_step` are all that a pruner needs here."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kerf.compress.data.batches import Batches, images_of
from kerf.compress.data.sets import Data
from kerf.compress.network.watching import evaluated
from kerf.compress.training import distributed
from kerf.compress.training.attention import apart, looked, stages
from kerf.compress.training.global_batch import global_batch
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import NOTHING, Plan, Pressure, Task
from kerf.compress.training.progress import Reporter
from kerf.compress.training.sample import Sample, Shown
from kerf.errors import BadInput, Diverged


@dataclass(frozen=True)
class Optim:
    """SGD as the 1xN authors use it: weight decay on every parameter."""

    lr: LearningRate = field(default_factory=LearningRate)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 4e-5
    label_smoothing: float = 0.0
    distill: float = 0.0  # weight of the teachers' answers in the loss
    distill_features: float = 0.0  # weight of where the teachers look in the loss
    ema: float = 0.0  # share that the average of the weights keeps of itself at a step; 0: no average
    precision: str = "auto"
    temperature: float = 4.0  # at which answers are compared


@dataclass(frozen=True)
class Metrics:
    top1: float  # percent
    top5: float  # percent
    loss: float
    images: int
    predictions: tuple[int, ...] = ()  # top-1 class of every image that was read, in the order of the split
    skipped: tuple[str, ...] = ()  # names of the others

    def by_name(self, names: Sequence[str]) -> dict[str, int]:
        """Predictions by image; `names` are all of the split."""
        missing = frozenset(self.skipped)
        return dict(zip((name for name in names if name not in missing), self.predictions, strict=True))


@dataclass
class State:
    """All that an epoch needs from the ones before it, apart from the weights in the model."""

    epoch: int = 0  # completed
    momentum: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)  # state dict of the best epoch, by validation
    best_score: tuple[float, float] | None = None  # (top-1, -loss)
    history: list[dict[str, Any]] = field(default_factory=list)  # a row of metrics.jsonl per epoch
    sgd: torch.optim.SGD | None = None  # while `fit` trains
    average: dict[str, Tensor] = field(default_factory=dict)  # state dict of the averaged weights, with `Optim.ema`

    def add(self, row: dict[str, Any], weights: Mapping[str, Tensor] | None) -> None:
        """An epoch more. Its weights are kept where they are given and the best so far."""
        self.epoch = row["epoch"] + 1
        self.history.append(row)
        if weights is not None:
            self._consider(weights, (row["val_top1"], -row["val_loss"]))

    def consider(self, weights: Mapping[str, Tensor], val: Metrics) -> None:
        """Weights from before the first epoch, which are kept if they are the best so far."""
        self._consider(weights, (val.top1, -val.loss))

    def _consider(self, weights: Mapping[str, Tensor], score: tuple[float, float]) -> None:
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}


PRECISIONS = ("auto", "f32", "bf16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """bf16 where the hardware multiplies it natively ("auto"), always ("bf16") or never ("f32"). Weights stay f32."""
    if precision == "auto":
        if device.type == "cpu":
            can: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
            native = can.get("avx512_bf16") or can.get("amx_bf16")
        else:
            native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if native else "f32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def distance(logits: Tensor, answers: Sequence[Tensor], t: float) -> Tensor:
    """Mean over teachers, and over images, of t² KL(answers / t ‖ logits / t); logits are (B, classes)."""
    own = F.log_softmax(logits / t, 1)
    each = [F.kl_div(own, F.log_softmax(a / t, 1), reduction="batchmean", log_target=True) for a in answers]
    return t * t * torch.stack(each).mean()


def make_task(optim: Optim, device: torch.device, teachers: Sequence[nn.Module] = ()) -> Task:
    """Cross-entropy; with `distill` = a and teachers (1 - a) CE + a T² KL(teacher / T, student / T), their mean.

    With `distill_features` = b, b times the distance of attention maps (`attention.py`) from the teachers' is added.
    Source: Hinton et al., arXiv 1503.02531. Teachers are in evaluation mode.
    """
    places: list[str] = []  # of attention maps, once there is a batch to look at

    def task(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if teachers and optim.distill_features and not places:
            places.extend(stages(teachers[0], x[:1]))
        with autocast(optim.precision, device):
            logits, maps = looked(model, places, x)
        logits = logits.float()
        loss = F.cross_entropy(logits, y, label_smoothing=optim.label_smoothing)
        if teachers and (optim.distill or optim.distill_features):
            with torch.no_grad(), autocast(optim.precision, device):
                seen = [looked(teacher, places, x) for teacher in teachers]
            away = distance(logits, [answers.float() for answers, _ in seen], optim.temperature)
            loss = (1 - optim.distill) * loss + optim.distill * away
            if places:
                far = torch.stack([apart(maps, others) for _, others in seen]).mean()
                loss = loss + optim.distill_features * far
        return loss, logits

    return task


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Batches, steps: int, device: torch.device | str = "cpu") -> None:
    """Batch norm statistics anew: the mean over `steps` training batches. Weights stay."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    model.train().to(device)
    with global_batch(images_of(batches)):
        for _, (x, _) in zip(range(steps), batches.epoch(0, 0, distributed.part())):
            model(x.to(device, memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.eval()


def evaluate(model: nn.Module, batches: Batches, device: torch.device | str = "cpu") -> Metrics:
    """Loss and accuracy in f32, the arithmetic of the exported network. Each process takes a part of the images."""
    device = torch.device(device)
    model.eval().to(device)
    loss = torch.zeros((), dtype=torch.float64)
    top1 = top5 = 0
    predictions: list[int] = []
    with torch.inference_mode():
        for x, y in batches.epoch(0, 0, distributed.part()):
            logits = model(x.to(device, memory_format=torch.channels_last)).float().cpu()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hit = ranked == y[:, None]
            top1, top5 = top1 + int(hit[:, 0].sum()), top5 + int(hit.sum())
            loss += F.cross_entropy(logits, y, reduction="sum").double()
            predictions += ranked[:, 0].tolist()
    # parts are neighbours in file order, so end to end they are that order, and every image is counted once
    parts = distributed.gather((top1, top5, float(loss), predictions, sorted(batches.skipped)))
    top1, top5, summed = (sum(column) for column in list(zip(*parts))[:3])
    predictions = [label for part in parts for label in part[3]]
    skipped = {name for part in parts for name in part[4]}
    images = len(predictions)
    if not images:
        raise BadInput(f"none of {len(skipped)} images to evaluate can be read")
    return Metrics(
        100 * top1 / images, 100 * top5 / images, summed / images, images, tuple(predictions), tuple(sorted(skipped))
    )


def skipped_images(data: Data) -> int:
    """How many image files have been met so far, in any process, that could not be read."""
    met = distributed.gather([name for s in (data.train, data.val, data.test) if s for name in s.skipped])
    return len({name for names in met for name in names})


def fit(
    model: nn.Module,
    data: Data,
    optim: Optim,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    pressure: Pressure = NOTHING,
    teachers: Sequence[nn.Module] = (),
    after_step: Callable[[], None] | None = None,
    keep_best: bool = True,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    reporter: Reporter | None = None,
    title: str = "train",
) -> State:
    """Trains for `optim.lr.epochs` epochs and leaves the best epoch's weights, by validation top-1, in `model`.

    Without `keep_best` the last epoch's: under pressure an early epoch may be the best and still be far from pruned.
    With `optim.ema`, and without a pressure, whose parts are not to be copied, they are averages over steps.

    Every random draw of epoch e comes from (seed, e). With the same thread count, a run continued from the `state` that
    `on_epoch` saw, and the weights the model had then, therefore takes the same steps as one never interrupted.

    Of several processes each takes its part of every batch, and all take the steps that one alone would.

    Raises ValueError when the data has no training part, Diverged when the loss is no longer finite.
    """
    images, held_out = parts_of(data)
    device, reporter, state = torch.device(device), reporter or Reporter(), state or State()
    model.to(device).to(memory_format=torch.channels_last)
    named = dict(model.named_parameters())
    sgd = state.sgd = _sgd(named, optim, pressure, model)
    task = make_task(optim, device, teachers)
    for name, buffer in state.momentum.items():
        sgd.state[named[name]]["momentum_buffer"] = torch.empty_like(named[name]).copy_(buffer)
    distributed.agree(model.state_dict(), "before training")
    average = _average(model, optim, state) if optim.ema and pressure is NOTHING else None
    shown = average.module if average else model  # what is evaluated, and kept
    after = [follow for follow in (after_step, average and partial(average.update_parameters, model)) if follow]
    try:
        for epoch in range(state.epoch, optim.lr.epochs):
            reporter.start(f"{title} {epoch + 1}/{optim.lr.epochs}", len(images))
            row: dict[str, Any] = {"phase": title, "epoch": epoch}
            row |= _train_epoch(model, images, sgd, optim, epoch, device, seed, task, pressure, after, reporter)
            named = dict(model.named_parameters())  # of which some are new where channels were cut
            state.momentum = {n: b for n, p in named.items() if (b := sgd.state[p].get("momentum_buffer")) is not None}
            distributed.agree(model.state_dict(), f"after epoch {epoch + 1}", list(state.momentum.values()))
            val = evaluate(shown, held_out, device)
            row |= {"val_loss": val.loss, "val_top1": val.top1, "val_top5": val.top5}
            state.average = dict(shown.state_dict()) if average else {}
            state.add(row, shown.state_dict() if keep_best else None)
            if on_epoch:
                on_epoch(state)
            reporter.finish(_told(row))
    finally:
        reporter.stop()
    if last := state.best or state.average:
        model.load_state_dict(last)
    return state


def _told(row: Mapping[str, Any]) -> str:
    """An epoch in a line."""
    return (
        f"loss {row['loss']:.4f}  top-1 {row['top1']:.2f} %  val top-1 {row['val_top1']:.2f} %  "
        f"lr {row['lr']:.5f}  {row['images_per_second']:.0f} images/s"
    )


def _average(model: nn.Module, optim: Optim, state: State) -> AveragedModel:
    """Of weights and batch norm statistics over steps, w̄ ← d w̄ + (1 − d) w with d = `ema`, from the first step's on."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema), use_buffers=True)
    if state.average:
        average.module.load_state_dict(state.average)
        average.n_averaged += 1  # at 0 the first step's weights would take the place of the average
    return average


def parts_of(data: Data) -> tuple[Batches, Batches]:
    """The images to train on and those to choose the best epoch by. Raises BadInput where there are none."""
    if data.train is None or data.val is None:
        raise BadInput(f"{data.name} has no training images: expected train/<class>/ beside the evaluation folder")
    return data.train, data.val


def sample_of(data: Data, device: torch.device | str) -> Sample:
    """The training images in one order, and the validation images; those of the test part where there are none."""

    def shown(images: Batches) -> Sample:
        return lambda: ((x.to(device), y.to(device)) for x, y in images.epoch(0, 0))

    return Shown(shown(data.train or data.test), shown(data.val or data.test))


def plan_of(data: Data, optim: Optim, sparsity: float, device: torch.device | str = "cpu") -> Plan:
    """The steps that `fit` takes with this `optim`, and the images that it trains on and is measured on."""
    steps = len(data.train) if data.train else 0  # of an epoch
    rate = lambda step: optim.lr(step // steps, step % steps, steps)  # noqa: E731

    def accuracy(model: nn.Module) -> float:
        with evaluated(model):
            return evaluate(model, parts_of(data)[1], device).top1 / 100

    sample = sample_of(data, device)
    return Plan(optim.lr.epochs * steps, rate, sparsity, optim.momentum, steps, sample=sample, accuracy=accuracy)


def _sgd(named: dict[str, nn.Parameter], optim: Optim, pressure: Pressure, model: nn.Module) -> torch.optim.SGD:
    groups: list[dict[str, Any]] = []
    own: set[str] = set()
    for group in pressure.parameter_groups(model):
        options = {"momentum": group.momentum, "nesterov": group.nesterov, "weight_decay": group.weight_decay}
        options = {name: value for name, value in options.items() if value is not None}
        groups.append({"params": [named[n] for n in group.names], "scale": group.scale, **options})
        own.update(group.names)
    rest = {"params": [p for name, p in named.items() if name not in own], "scale": 1.0}
    return torch.optim.SGD(
        [rest, *groups],
        lr=optim.lr.base,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    sgd: torch.optim.SGD,
    optim: Optim,
    epoch: int,
    device: torch.device,
    seed: int,
    task: Task,
    pressure: Pressure,
    after_step: Sequence[Callable[[], None]],
    reporter: Reporter,
) -> dict[str, float]:
    torch.manual_seed(seed * 1_000_003 + epoch)  # dropout; the batches have streams of their own
    model.train()
    began, images, rate = time.monotonic(), 0, 0.0
    batch = images_of(batches)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, hits
    # to read a number from a GPU, or from another process, is to wait for it
    interval = 1 if device.type == "cpu" and distributed.alone() else 20  # steps
    with global_batch(batch):
        for step, (x, y) in enumerate(batches.epoch(epoch, seed, distributed.part())):
            done = epoch * len(batches) + step
            rate = optim.lr(epoch, step, len(batches)) * pressure.rate_factor(done)
            for group in sgd.param_groups:
                group["lr"] = rate * group["scale"]
            x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
            loss, logits = pressure.loss(model, x, y, task, done)
            sgd.zero_grad(set_to_none=True)
            # a mean over this part's images; weighted by their share, what all processes have adds up to the batch's
            (loss if distributed.alone() else loss * (len(y) / batch)).backward()
            distributed.sum_gradients(model.parameters())
            pressure.edit_gradients(model, done)
            sgd.step()
            pressure.after_step(model, done)
            for follow in after_step:
                follow()
            images += batch
            sums += torch.stack([loss.detach().double() * len(y), (logits.argmax(1) == y).sum().double()])
            if (step + 1) % interval == 0 or step + 1 == len(batches):
                total, hits = distributed.total(sums).tolist()
                if not math.isfinite(total):
                    raise Diverged(f"loss is {total / images} at epoch {epoch}, step {step}: lower --lr (now {rate:g})")
                reporter.step(step + 1, images, total / images, 100 * hits / images)
    seconds = time.monotonic() - began
    return {
        "lr": rate,
        "loss": total / images,
        "top1": 100 * hits / images,
        "images_per_second": round(images / seconds, 1),
        "seconds": round(seconds, 3),
    }
