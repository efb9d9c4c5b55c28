"""Flags -> frozen Args. Names and defaults are the 1xN authors', both spellings where they differ. No training here."""

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kerf.compress.data.photographs import BAD_IMAGES
from kerf.compress.data.sets import DATA_SETS, EMBEDDED
from kerf.compress.methods.composed import DEFAULT_PARTS, PARTS
from kerf.compress.training.learning_rate import POLICIES
from kerf.compress.training.train import PRECISIONS
from kerf.console import Parser
from kerf.errors import BadInput

# 1,294 images need fewer epochs of more steps than the seed's defaults, which are for ImageNet.
DATA_DEFAULTS: dict[str, dict[str, Any]] = {"digits": {"num_epochs": 6, "train_batch_size": 32, "lr": 0.05}}
DEFAULTS: dict[str, Any] = {"num_epochs": 180, "train_batch_size": 256, "lr": 0.01}

# The seed's parser has these too and never reads them, or they name the one thing there is.
IGNORED = ("--bn_type", "--first-layer-type", "--init", "--mode", "--nonlinearity", "--random_rule")


SPEECH = ("quiet", "json")  # flags that change nothing but what is printed


@dataclass(frozen=True)
class Args:
    """One run. None means: as the data set or the machine has it; `resolve` fills those in."""

    arch: str = "mobilenet_v2"
    data_set: str | None = None
    data_path: Path | None = None
    job_dir: Path | None = None
    pretrained_model: str | None = None
    pruned_model: str | None = None
    resume: Path | None = None
    method: str | None = None
    conv_type: str | None = None
    criterion: str | None = None
    granularity: str | None = None
    schedule: str | None = None
    scope: str | None = None
    pr_target: float | None = None
    flops_target: float | None = None
    allocate: str = "uniform"
    calibration: int = 512
    speedup_target: float | None = None
    latency_target_ms: float | None = None
    target: str = "native"
    threads: int = 1
    N: int = 16
    N_choices: tuple[int, ...] = ()
    full: bool = False
    rearrange: bool = False
    residual: bool | None = None
    skip: tuple[str, ...] = ()
    min_width: int = 1
    round_to: int = 1
    prune_steps: int = 1
    recalibrate: int = 0
    set: tuple[str, ...] = ()
    num_epochs: int | None = None
    finetune_epochs: int | None = None
    train_batch_size: int | None = None
    eval_batch_size: int = 256
    optimizer: str = "sgd"
    lr: float | None = None
    lr_policy: str = "cos"
    lr_adjust: int = 30
    lr_gamma: float = 0.1
    lr_decay_step: tuple[int, ...] = ()
    warmup_length: int = 5
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 4e-5
    label_smoothing: float = 0.0
    distill: float = 0.0
    gpus: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: str = "auto"
    workers: int = 2
    seed: int = 0
    image_size: int | None = None
    num_classes: int | None = None
    subset: int | None = None
    export_onnx: bool = False
    tensorboard: bool = False
    use_dali: bool = False
    bad_images: str = "fatal"
    test_only: bool = False
    debug: bool = False
    quiet: bool = False
    json: bool = False

    @property
    def heights(self) -> tuple[int, ...]:
        """The N that blocks may have."""
        return self.N_choices or (self.N,)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is None is left out, so the file serves as --config, and so is how the run speaks."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k not in SPEECH}
        return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def command(self) -> str:
        """What starts this run from nothing: the flags that are not the defaults."""
        plain, first = Args().as_json(), dataclasses.replace(self, resume=None, debug=False).as_json()
        flags = as_flags({name: value for name, value in first.items() if value != plain.get(name)})
        return shlex.join(["python", "imagenet.py", *flags])


ALLOCATIONS = ("uniform", "sensitivity")

# A resumed run must take the same steps as the one that was stopped; these may differ without changing any.
FREE_ON_RESUME = frozenset(
    ("resume", "job_dir", "data_path", "device", "gpus", "workers", "eval_batch_size", "export_onnx", "debug")
) | {"tensorboard", "bad_images", *SPEECH}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="imagenet.py",
        description="Prune a convolutional network, fine-tune it, export it.",
        epilog="Beside it: kerf-prune methods [NAME], the table of methods; kerf-prune show CHECKPOINT, what a run "
        "left; kerf-prune sensitivity (the flags above), what pruning costs layer by layer.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument

    def switch(*names: str, help: str) -> None:
        add(*names, action=argparse.BooleanOptionalAction, help=help)

    add("--config", type=Path, metavar="FILE", help="JSON of flag names and values; flags given here override it")
    add("--arch", help="network (default mobilenet_v2)")
    add("--data_set", choices=tuple(DATA_SETS), help="default: digits, or imagenet when --data_path is given")
    add("--data_path", type=Path, metavar="DIR", help="where the data set is stored")
    add("--job_dir", type=Path, metavar="DIR", help="where results go (default experiments/<date and time>)")
    add("--pretrained_model", "--pretrain_model", metavar="FILE", help="dense weights, or 'torchvision'")
    add("--pruned_model", "--evaluate", metavar="FILE", help="only evaluate these weights, or 'torchvision'")
    add(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue the run in this folder (or its checkpoint/last.safetensors)",
    )
    add("--method", help="pruning method (default one_by_n)")
    add(
        "--conv_type",
        help="the method by 1xN's name: BlockL1Conv, BlockRandomConv, UnstructureConv, StructureConv, DenseConv",
    )
    for name, values in PARTS.items():
        add(f"--{name}", choices=values, help=f"in place of a method: its {name} (default {DEFAULT_PARTS[name]})")
    add("--pr_target", type=float, metavar="P", help="share removed: of each layer, or of channels (default 0.5)")
    add("--flops_target", type=float, metavar="S", help="channel methods: share of the MACs to keep, for --pr_target")
    add(
        "--allocate",
        choices=ALLOCATIONS,
        help="how --pr_target is shared out (default uniform)",
    )
    add("--calibration", type=int, metavar="IMAGES", help="validation images that show a layer's harm (default 512)")
    add("--speedup_target", type=float, metavar="X", help="run X times as fast as the fastest dense engine here")
    add("--latency_target_ms", type=float, metavar="MS", help="run within MS milliseconds an image here")
    add("--target", help="CPU of the two targets, as in model_tune.py (default native)")
    add("--threads", type=int, help="threads of the two targets (default 1)")
    add("--N", type=int, help="consecutive output kernels in a block (default 16)")
    add(
        "--N_choices",
        type=int,
        nargs="+",
        metavar="N",
        help="with a target in time: every layer takes one of these N (default: --N for all)",
    )
    switch("--full", help="prune the classifier too")
    switch("--rearrange", help="order filters by L1 before forming blocks")
    switch("--residual", help="channel methods: prune channels that are sums of several layers, too")
    add("--skip", nargs="+", metavar="LAYER", help="channel methods: layers whose outputs stay; * matches anything")
    add("--min_width", type=int, metavar="C", help="channel methods: channels that every layer keeps (default 1)")
    add("--round_to", type=int, metavar="C", help="channel methods: keep multiples of C channels (default 1)")
    add("--prune_steps", type=int, metavar="K", help="prune in K steps, each with its part of the epochs (default 1)")
    add("--recalibrate", type=int, metavar="K", help="after pruning: batch norm statistics from K batches (default 0)")
    add("--set", nargs="+", metavar="NAME=VALUE", help="numbers of the method's own; kerf-prune methods lists them")
    add("--num_epochs", type=int, help="epochs (default 180; digits 6), for the dense network and again after pruning")
    add("--finetune_epochs", type=int, help="epochs after pruning, where they are to differ from --num_epochs")
    add("--train_batch_size", type=int, help="default 256; digits 32")
    add("--eval_batch_size", type=int, help="default 256")
    add("--optimizer", choices=("sgd",))
    add("--lr", type=float, help="default 0.01; digits 0.05")
    add("--lr_policy", "--lr_type", choices=tuple(POLICIES), help="default cos")
    add("--lr_adjust", "--lr_decay_freq", type=int, help="step: epochs between decays (default 30)")
    add("--lr_gamma", type=float, help="step: factor (default 0.1)")
    add("--lr_decay_step", type=int, nargs="+", metavar="EPOCH", help="step: decay at these epochs instead")
    add("--warmup_length", type=int, help="epochs of warm-up (default 5), at most a quarter of the phase")
    add("--momentum", type=float)
    switch("--nesterov", help="Nesterov momentum")
    add("--weight_decay", type=float, help="default 4e-5")
    add("--label-smoothing", "--label_smoothing", dest="label_smoothing", type=float)
    add("--distill", type=float, metavar="A", help="weight of the dense network's answers in the loss (default 0)")
    add(
        "--gpus",
        type=int,
        nargs="+",
        metavar="ID",
        help="GPU of a single process (default 0); torchrun's take one each",
    )
    add("--device", help="auto, cpu, cuda or cuda:<id>")
    add("--precision", choices=PRECISIONS, help="training arithmetic; auto: bf16 where the hardware has it")
    add("--workers", type=int, help="processes or threads that decode images (default 2)")
    add("--seed", type=int)
    add("--image_size", type=int, help="imagenet and synthetic: side of the input (default 224 and 32)")
    add("--num_classes", type=int, help="synthetic: number of classes (default 10)")
    add("--subset", type=int, metavar="IMAGES", help="use that many training and test images: for smoke runs")
    switch("--export_onnx", help="write model.onnx")
    switch("--tensorboard", help="write curves and histograms to JOB_DIR/tensorboard")
    switch("--use_dali", help="imagenet: decode with NVIDIA DALI, of the extra dali")
    add(
        "--bad_images",
        choices=BAD_IMAGES,
        help="imagenet: files that are no images end the run (default), or are left out",
    )
    switch("--test_only", help="with --pruned_model: the same as that alone")
    switch("--debug", help="show the traceback of an error")
    switch("--quiet", help="print nothing; errors still come")
    switch("--json", help="print summary.json and the files written, as one object, and nothing else on stdout")
    for name in IGNORED:
        add(name, nargs="?", dest="ignored_" + name.strip("-"), help=argparse.SUPPRESS)
    return parser


def config_flags(path: Path) -> list[str]:
    """A JSON object as the flags it stands for, so that the parser checks both alike."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected JSON such as the config.json of a run")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds a {type(values).__name__}, expected an object of flag names and values")
    return as_flags(values)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        flag = "--label-smoothing" if name == "label_smoothing" else f"--{name}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{name}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"{flag}={value}")
    return flags


def parse(argv: Sequence[str] | None = None) -> tuple[Args, list[str]]:
    """Args with every None resolved that can be, and lines to tell the user.

    A run to resume brings its own config.json. Raises ValueError or FileNotFoundError, each with one line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, notes = build_parser(), []
    given = vars(parser.parse_args(argv))
    if "config" in given:
        given = vars(parser.parse_args([*config_flags(given["config"]), *argv]))
    given.pop("config", None)
    for name in [n for n in given if n.startswith("ignored_")]:
        del given[name]
        notes.append(f"--{name.removeprefix('ignored_')} is accepted, since 1xN's scripts pass it, and changes nothing")
    if "resume" in given:
        given = _as_resumed(parser, given)
    for name in ("lr_decay_step", "gpus", "set", "skip", "N_choices"):
        if name in given:
            given[name] = tuple(given[name])
    args = Args(**given)
    if args.data_set is None:
        if args.data_path is None:
            notes.append("no --data_path: using the embedded digits (scikit-learn, 1,797 images)")
        args = dataclasses.replace(args, data_set="digits" if args.data_path is None else "imagenet")
    elif args.data_set in EMBEDDED and args.data_path is not None:
        notes.append(f"--data_path is not needed for {args.data_set} and not read")
    defaults = DEFAULTS | DATA_DEFAULTS.get(args.data_set, {})
    args = dataclasses.replace(args, **{k: v for k, v in defaults.items() if getattr(args, k) is None})
    if args.finetune_epochs is None:
        args = dataclasses.replace(args, finetune_epochs=args.num_epochs)
    if args.job_dir is None:
        args = dataclasses.replace(args, job_dir=Path("experiments") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    check(args)
    return args, notes


def _as_resumed(parser: argparse.ArgumentParser, given: dict[str, Any]) -> dict[str, Any]:
    folder = given["resume"]
    if folder.is_file():  # the checkpoint itself, as the seed has it
        folder = folder.parent.parent
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no run to resume at {given['resume']}: expected a --job_dir with config.json in it")
    before = vars(parser.parse_args(config_flags(folder / "config.json")))
    for name, value in given.items():
        if name not in FREE_ON_RESUME and before.get(name) != value:
            raise BadInput(
                f"--{name} {value} is not the {before.get(name)} of the run in {folder}: resuming keeps its settings"
            )
    return before | given | {"resume": folder, "job_dir": folder}


def continued(args: Args, notes: list[str]) -> tuple[Args, list[str]]:
    """Under torchrun, which starts a failed run again with the same flags, those continue the unfinished run.

    That is one in --job_dir with the same settings, a finished epoch and no summary.json.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or args.resume or args.pruned_model:
        return args, notes
    folder = args.job_dir
    files = folder / "config.json", folder / "checkpoint" / "last.safetensors"
    if not all(file.is_file() for file in files) or (folder / "summary.json").exists():
        return args, notes
    before, now = json.loads(files[0].read_text()), args.as_json()
    if any(before.get(name) != now.get(name) for name in {*before, *now} - FREE_ON_RESUME):
        return args, notes
    return dataclasses.replace(args, resume=folder), [*notes, f"continuing the unfinished run in {folder}"]


def check(args: Args) -> None:
    """Raises ValueError naming the first value out of range."""
    bounds = {  # smallest allowed
        "N": 1, "train_batch_size": 1, "eval_batch_size": 1, "lr_adjust": 1, "image_size": 1, "num_classes": 2,
        "subset": 1, "num_epochs": 0, "finetune_epochs": 0, "warmup_length": 0, "workers": 0, "momentum": 0,
        "weight_decay": 0,
        "label_smoothing": 0, "pr_target": 0, "lr_gamma": 0, "seed": 0, "min_width": 1, "round_to": 1, "prune_steps": 1,
        "recalibrate": 0, "distill": 0, "calibration": 1, "threads": 1,
    }  # fmt: skip
    for name, least in bounds.items():
        value = getattr(args, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise BadInput(f"--{name} is {value}: expected {least} or more")
    for name in ("pr_target", "label_smoothing"):
        if getattr(args, name) is not None and getattr(args, name) >= 1:
            raise BadInput(f"--{name} is {getattr(args, name)}: expected less than 1")
    if args.distill > 1:
        raise BadInput(f"--distill is {args.distill}: expected at most 1")
    if args.flops_target is not None and not 0 < args.flops_target < 1:
        raise BadInput(f"--flops_target is {args.flops_target}: expected a share of the MACs above 0 and below 1")
    timed = [name for name in ("speedup_target", "latency_target_ms") if getattr(args, name) is not None]
    for name in timed:
        if not (getattr(args, name) > 0 and math.isfinite(getattr(args, name))):
            raise BadInput(f"--{name} is {getattr(args, name)}: expected a positive number")
    if args.N_choices and not timed:
        raise BadInput("--N_choices lets layers differ in what they take: give --speedup_target or --latency_target_ms")
    if min(args.N_choices, default=1) < 1 or len(set(args.N_choices)) < len(args.N_choices):
        raise BadInput(f"--N_choices {' '.join(map(str, args.N_choices))}: expected different N, each 1 or more")
    asked = [name for name in ("pr_target", "flops_target") if getattr(args, name) is not None] + timed
    if len(asked) > 1:
        raise BadInput(f"{' and '.join(f'--{name}' for name in asked)} each say how much to remove: give one")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise BadInput(f"--lr is {args.lr}: expected a positive number")
    if args.nesterov and args.momentum == 0:
        raise BadInput("--nesterov needs --momentum above 0")
    if (count := len(args.gpus)) > 1:
        given = " ".join(map(str, args.gpus))
        raise BadInput(f"--gpus {given}: a process takes one GPU; for {count}: torchrun --nproc_per_node={count} …")
    if args.test_only and args.pruned_model is None:
        raise BadInput("--test_only needs --pruned_model FILE")
    if args.pruned_model and args.pretrained_model:
        raise BadInput("--pruned_model evaluates, --pretrained_model trains: give one of them")
