"""The flags of kerf-prune, a field each, and one run's values of them. Names and defaults are the 1xN authors'.

All of a flag is said here and nowhere else: type, group, default, range, help. Groups begin with a first run's.
"""
# ruff: noqa: RUF009 - `flag` makes a field, not a value that all instances would share

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerf.compress.command.flags import POSITIVE, Flag, Range, as_json, as_text, below, flag, least, most, rows, typed
from kerf.compress.data.photographs import BAD_IMAGES
from kerf.compress.data.sets import DATA_SETS
from kerf.compress.methods.composed import DEFAULT_PARTS, PARTS
from kerf.compress.methods.own_recipes import OWN
from kerf.compress.training.learning_rate import POLICIES
from kerf.compress.training.train import PRECISIONS
from kerf.errors import BadInput
from kerf.images import RANGE, RANGES

WHAT, HOW, TRAINING, DATA, OUTPUT, MACHINE = "what to prune", "how", "training", "data", "output", "machine and others"
CONV_TYPES = {  # the 1xN authors' names; nothing else in the project knows them
    "BlockL1Conv": "one_by_n",
    "BlockRandomConv": "random_block",
    "UnstructureConv": "weight",
    "StructureConv": "filter",
    "DenseConv": "dense",
}
PROPER = Range(lambda given: 0 < given < 1, "a share of the MACs above 0 and below 1")


def part(name: str) -> Any:
    """--criterion and the like, of which a method can be put together."""
    return flag(HOW, f"in place of a method: its {name}", choices=PARTS[name], otherwise=DEFAULT_PARTS[name])


@dataclass(frozen=True, kw_only=True)
class Args:
    """One run, its defaults filled in: None means none. The digits' few images need fewer epochs of more steps."""

    arch: str = flag(WHAT, "network", default="mobilenet_v2")
    pretrained_model: str | None = flag(
        WHAT, "dense weights, or 'torchvision'", otherwise="none: the dense network is trained first",
        metavar="FILE", also=("--pretrain_model",),
    )  # fmt: skip
    pruned_model: str | None = flag(
        WHAT, "prune nothing: evaluate these weights, or 'torchvision'", metavar="FILE", also=("--evaluate",)
    )
    test_only: bool = flag(WHAT, "with --pruned_model: the same as that alone", default=False)

    method: str | None = flag(HOW, "pruning method; kerf-prune methods lists them", otherwise="one_by_n")
    pr_target: float | None = flag(
        HOW, "share removed: of each layer, or of channels", otherwise="0.5", metavar="P", ranges=(least(0), below(1))
    )
    N: int = flag(HOW, "consecutive output kernels in a block", default=16, ranges=(least(1),))
    rearrange: bool = flag(HOW, "order filters by L1 before forming blocks", default=False)
    flops_target: float | None = flag(
        HOW, "share of the MACs to keep, for --pr_target", metavar="S", ranges=(PROPER,), channels=True
    )
    speedup_target: float | None = flag(
        HOW, "run X times as fast as the fastest dense engine here", metavar="X", ranges=(POSITIVE,)
    )
    latency_target_ms: float | None = flag(
        HOW, "run within MS milliseconds an image here", metavar="MS", ranges=(POSITIVE,)
    )
    N_choices: tuple[int, ...] = flag(
        HOW, "with a target in time: every layer takes one of these N", default=(), otherwise="--N for all", metavar="N"
    )
    allocate: str = flag(
        HOW, "how --pr_target is shared out", default="uniform", choices=("uniform", "sensitivity", "obs")
    )
    calibration: int = flag(
        HOW,
        "validation images that show a layer's harm, and ranges of int8",
        default=512,
        metavar="IMAGES",
        ranges=(least(1),),
    )
    full: bool = flag(HOW, "prune linear layers too: a transformer's, the classifier", default=False)
    set: tuple[str, ...] = flag(
        HOW, "numbers of the method's own; kerf-prune methods METHOD lists them", default=(), metavar="NAME=VALUE"
    )
    residual: bool | None = flag(HOW, "prune channels that are sums of several layers, too", channels=True)
    skip: tuple[str, ...] = flag(
        HOW, "layers whose outputs stay; * matches anything", default=(), metavar="LAYER", channels=True
    )
    min_width: int = flag(
        HOW, "channels that every layer keeps", default=1, metavar="C", ranges=(least(1),), channels=True
    )
    round_to: int = flag(HOW, "keep multiples of C channels", default=1, metavar="C", ranges=(least(1),), channels=True)
    strict: bool = flag(HOW, "refuse operators without a rule instead of leaving what they read whole", default=False)
    prune_steps: int = flag(
        HOW, "prune in K steps, each with its part of the epochs", default=1, metavar="K", ranges=(least(1),)
    )
    recalibrate: int = flag(
        HOW, "after pruning: batch norm statistics from K batches", default=0, metavar="K", ranges=(least(0),)
    )
    quantise: str | None = flag(
        HOW, "then write model.onnx on integers of 8 bits, and measure that", otherwise="f32", choices=("int8",)
    )
    qat_epochs: int = flag(
        HOW, "before that train on integers for so many epochs", default=0, metavar="K", ranges=(least(0),)
    )
    quantise_ranges: str = flag(HOW, "how ranges of int8 are taken", default=RANGE, choices=RANGES)
    recipe: str = flag(
        HOW, "epochs, rates, batch and decay: the flags' defaults, those of the method's authors, or this project's",
        default="own", choices=("own", "published", *OWN),
    )  # fmt: skip
    epochs_scale: float = flag(
        HOW, "with another --recipe than own: its epochs times X", default=1.0, metavar="X", ranges=(POSITIVE,)
    )
    conv_type: str | None = flag(HOW, f"the method by 1xN's name: {', '.join(CONV_TYPES)}")
    criterion: str | None = part("criterion")
    granularity: str | None = part("granularity")
    schedule: str | None = part("schedule")
    scope: str | None = part("scope")

    num_epochs: int = flag(
        TRAINING, "epochs, for the dense network and again after pruning", default=180, by_data={"digits": 6},
        ranges=(least(0),),
    )  # fmt: skip
    finetune_epochs: int = flag(
        TRAINING, "epochs after pruning", decided=True, otherwise="--num_epochs", ranges=(least(0),)
    )
    lr: float = flag(TRAINING, "learning rate", default=0.01, by_data={"digits": 0.05}, ranges=(POSITIVE,))
    train_batch_size: int = flag(TRAINING, "images in a step", default=256, by_data={"digits": 32}, ranges=(least(1),))
    lr_policy: str = flag(TRAINING, "how the rate falls", default="cos", choices=tuple(POLICIES), also=("--lr_type",))
    lr_adjust: int = flag(
        TRAINING, "step: epochs between decays", default=30, ranges=(least(1),), also=("--lr_decay_freq",)
    )
    lr_gamma: float = flag(TRAINING, "step: factor", default=0.1, ranges=(least(0),))
    lr_decay_step: tuple[int, ...] = flag(
        TRAINING, "step: decay at these epochs instead", default=(), decided=True, metavar="EPOCH",
        otherwise="with --lr_policy step 100 150; imagenet, or with --lr_adjust: none",
    )  # fmt: skip
    warmup_length: int = flag(
        TRAINING, "epochs of warm-up, at most a quarter of the phase", default=5, ranges=(least(0),)
    )
    optimizer: str = flag(TRAINING, "the one there is", default="sgd", choices=("sgd",))
    momentum: float = flag(TRAINING, "of SGD", default=0.9, ranges=(least(0),))
    nesterov: bool = flag(TRAINING, "Nesterov momentum", default=False)
    weight_decay: float = flag(TRAINING, "of every parameter", default=4e-5, ranges=(least(0),))
    label_smoothing: float = flag(
        TRAINING, "of the cross-entropy", default=0.0, ranges=(least(0), below(1)), also=("--label-smoothing",)
    )
    distill: float = flag(
        TRAINING, "weight of the dense network's answers in the loss", default=0.0, metavar="A",
        ranges=(least(0), most(1)),
    )  # fmt: skip
    distill_features: float = flag(
        TRAINING, "weight of where the dense network looks (attention maps) in the loss", default=0.0, metavar="B",
        ranges=(least(0),),
    )  # fmt: skip
    ema: float = flag(
        TRAINING, "average weights over steps, keep D of the average at each, and evaluate and keep that", default=0.0,
        metavar="D", ranges=(least(0), below(1)),
    )  # fmt: skip
    precision: str = flag(
        TRAINING, "arithmetic; auto: bf16 where the hardware has it", default="auto", choices=PRECISIONS
    )
    seed: int = flag(TRAINING, "of every random draw", default=0, ranges=(least(0), most(2**32 - 1)))

    data_set: str = flag(
        DATA, "what to train and measure on", decided=True, otherwise="digits, or imagenet where --data_path is given",
        choices=tuple(DATA_SETS),
    )  # fmt: skip
    data_path: Path | None = flag(DATA, "where the data set is stored", metavar="DIR", free=True)
    eval_batch_size: int = flag(DATA, "images evaluated together", default=100, ranges=(least(1),), free=True)
    image_size: int | None = flag(
        DATA, "imagenet and synthetic: side of the input", otherwise="224 and 32", ranges=(least(1),)
    )
    num_classes: int | None = flag(DATA, "synthetic: number of classes", otherwise="10", ranges=(least(2),))
    subset: int | None = flag(
        DATA, "use that many training and test images: for smoke runs", metavar="IMAGES", ranges=(least(1),)
    )
    bad_images: str = flag(
        DATA, "imagenet: files that are no images end the run, or are left out", default="fatal", choices=BAD_IMAGES,
        free=True,
    )  # fmt: skip
    use_dali: bool = flag(DATA, "imagenet: decode with NVIDIA DALI, of the extra dali", default=False)

    job_dir: Path = flag(
        OUTPUT, "where results go", decided=True, otherwise="experiments/<date and time>", metavar="DIR", free=True
    )
    export_onnx: bool = flag(OUTPUT, "write model.onnx", default=False, free=True)
    resume: Path | None = flag(
        OUTPUT, "continue the run in this folder (or its checkpoint/last.safetensors)", metavar="DIR", free=True
    )
    tensorboard: bool = flag(OUTPUT, "write curves and histograms to JOB_DIR/tensorboard", default=False, free=True)
    quiet: bool = flag(OUTPUT, "print nothing; errors still come", default=False, free=True, saved=False)
    json: bool = flag(
        OUTPUT, "print summary.json and the files written, as one object, and nothing else on stdout", default=False,
        free=True, saved=False,
    )  # fmt: skip

    device: str = flag(MACHINE, "auto, cpu, cuda or cuda:<id>", default="auto", free=True)
    gpus: tuple[int, ...] = flag(
        MACHINE, "GPU of a single process; torchrun's take one each", default=(0,), metavar="ID", free=True
    )
    workers: int = flag(MACHINE, "processes or threads that decode images", default=2, ranges=(least(0),), free=True)
    target: str = flag(MACHINE, "CPU of a target in time, as in model_tune.py", default="native")
    threads: int = flag(MACHINE, "threads of a target in time", default=1, ranges=(least(1),))
    debug: bool = flag(MACHINE, "show the traceback of an error", default=False, free=True)

    @property
    def heights(self) -> tuple[int, ...]:
        """The N that blocks may have."""
        return self.N_choices or (self.N,)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is None is left out, so the file serves as --config, and so is how the run speaks."""
        values = {f.name: as_json(getattr(self, f.name)) for f in FLAGS.values() if f.saved}
        return {name: value for name, value in values.items() if value is not None}

    def command(self) -> str:
        """What starts this run from nothing: the flags that are not the defaults."""
        first = dataclasses.replace(self, resume=None, debug=False).as_json()
        plain = {f.name: as_json(f.default) for f in FLAGS.values() if not f.decided}
        flags = typed({name: value for name, value in first.items() if value != plain.get(name)})
        return shlex.join(["python", "imagenet.py", *flags])


FLAGS: dict[str, Flag] = {row.name: row for row in rows(Args)}
GROUPS = tuple(dict.fromkeys(row.group for row in FLAGS.values()))


def check(args: Args) -> None:
    """Raises BadInput naming the first value out of range, or flags that contradict each other."""
    for row in FLAGS.values():
        row.check(getattr(args, row.name))
    times = [name for name in ("speedup_target", "latency_target_ms") if getattr(args, name) is not None]
    if args.N_choices and not times:
        raise BadInput("--N_choices lets layers differ in what they take: give --speedup_target or --latency_target_ms")
    if min(args.N_choices, default=1) < 1 or len({*args.N_choices}) < len(args.N_choices):
        raise BadInput(f"--N_choices {as_text(args.N_choices)}: expected different N, each 1 or more")
    amounts = [name for name in ("pr_target", "flops_target") if getattr(args, name) is not None] + times
    if len(amounts) > 1:
        raise BadInput(f"{' and '.join(f'--{name}' for name in amounts)} each say how much to remove: give one")
    if args.nesterov and args.momentum == 0:
        raise BadInput("--nesterov needs --momentum above 0")
    if (count := len(args.gpus)) > 1:
        given = as_text(args.gpus)
        raise BadInput(f"--gpus {given}: a process takes one GPU; for {count}: torchrun --nproc_per_node={count} …")
    if args.qat_epochs and not args.quantise:
        raise BadInput("--qat_epochs trains on integers: give --quantise int8")
    if args.quantise and times:
        raise BadInput(f"--quantise: --{times[0]} is a time of f32 kernels; give --pr_target or --flops_target")
    if args.qat_epochs and args.pruned_model:
        raise BadInput("--pruned_model evaluates, --qat_epochs trains: give one of them")
    if args.test_only and args.pruned_model is None:
        raise BadInput("--test_only needs --pruned_model FILE")
    if args.pruned_model and args.pretrained_model:
        raise BadInput("--pruned_model evaluates, --pretrained_model trains: give one of them")
