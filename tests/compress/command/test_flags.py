"""The table of flags: every spelling that was ever accepted, and what --help makes of them."""

import argparse
import re

import pytest

from kerf.compress.command import flags
from kerf.compress.command.args import FLAGS, GROUPS, Args
from kerf.compress.command.parsing import build_parser, parse

pytestmark = pytest.mark.quick

# Every flag before there was a table, with a value that is not its default and what Args holds then. Written out: a
# spelling that disappears from the table must not disappear from here.
TYPED = [
    ("--arch vgg16", "arch", "vgg16"),
    ("--data_set cifar10", "data_set", "cifar10"),
    ("--data_path D", "data_path", "D"),
    ("--job_dir J", "job_dir", "J"),
    ("--pretrained_model F", "pretrained_model", "F"),
    ("--pretrain_model F", "pretrained_model", "F"),
    ("--pruned_model F", "pruned_model", "F"),
    ("--evaluate F", "pruned_model", "F"),
    ("--method l1", "method", "l1"),
    ("--conv_type DenseConv", "conv_type", "DenseConv"),
    ("--data_set cifar10 --method rni --recipe published", "recipe", "published"),
    ("--data_set cifar10 --method rni --recipe published --epochs_scale 0.5", "epochs_scale", 0.5),
    ("--criterion hutchinson", "criterion", "hutchinson"),
    ("--granularity 1xN", "granularity", "1xN"),
    ("--schedule before_training", "schedule", "before_training"),
    ("--scope global", "scope", "global"),
    ("--pr_target 0.25", "pr_target", 0.25),
    ("--flops_target 0.25", "flops_target", 0.25),
    ("--allocate sensitivity", "allocate", "sensitivity"),
    ("--calibration 64", "calibration", 64),
    ("--quantise int8", "quantise", "int8"),
    ("--quantise int8 --qat_epochs 2", "qat_epochs", 2),
    ("--quantise_ranges minmax", "quantise_ranges", "minmax"),
    ("--speedup_target 2.5", "speedup_target", 2.5),
    ("--latency_target_ms 0.5", "latency_target_ms", 0.5),
    ("--target llvm", "target", "llvm"),
    ("--threads 4", "threads", 4),
    ("--N 4", "N", 4),
    ("--N_choices 4 8 --speedup_target 2", "N_choices", (4, 8)),
    ("--full", "full", True),
    ("--full --no-full", "full", False),
    ("--rearrange", "rearrange", True),
    ("--rearrange --no-rearrange", "rearrange", False),
    ("--residual", "residual", True),
    ("--no-residual", "residual", False),
    ("--skip a b*", "skip", ("a", "b*")),
    ("--min_width 3", "min_width", 3),
    ("--round_to 8", "round_to", 8),
    ("--strict", "strict", True),
    ("--strict --no-strict", "strict", False),
    ("--prune_steps 3", "prune_steps", 3),
    ("--recalibrate 2", "recalibrate", 2),
    ("--set a=1 b=2", "set", ("a=1", "b=2")),
    ("--num_epochs 3", "num_epochs", 3),
    ("--finetune_epochs 0", "finetune_epochs", 0),
    ("--train_batch_size 8", "train_batch_size", 8),
    ("--eval_batch_size 8", "eval_batch_size", 8),
    ("--optimizer sgd", "optimizer", "sgd"),
    ("--lr 0.3", "lr", 0.3),
    ("--lr_policy step", "lr_policy", "step"),
    ("--lr_type exp", "lr_policy", "exp"),
    ("--lr_adjust 20", "lr_adjust", 20),
    ("--lr_decay_freq 20", "lr_adjust", 20),
    ("--lr_gamma 0.2", "lr_gamma", 0.2),
    ("--lr_decay_step 5 9", "lr_decay_step", (5, 9)),
    ("--warmup_length 0", "warmup_length", 0),
    ("--momentum 0", "momentum", 0.0),
    ("--nesterov", "nesterov", True),
    ("--nesterov --no-nesterov", "nesterov", False),
    ("--weight_decay 1e-3", "weight_decay", 1e-3),
    ("--label-smoothing 0.1", "label_smoothing", 0.1),
    ("--label_smoothing 0.1", "label_smoothing", 0.1),
    ("--distill 0.5", "distill", 0.5),
    ("--distill_features 2", "distill_features", 2.0),
    ("--ema 0.99", "ema", 0.99),
    ("--gpus 3", "gpus", (3,)),
    ("--device cuda:1", "device", "cuda:1"),
    ("--precision bf16", "precision", "bf16"),
    ("--workers 0", "workers", 0),
    ("--seed 7", "seed", 7),
    ("--image_size 64", "image_size", 64),
    ("--num_classes 3", "num_classes", 3),
    ("--subset 8", "subset", 8),
    ("--export_onnx", "export_onnx", True),
    ("--export_onnx --no-export_onnx", "export_onnx", False),
    ("--tensorboard", "tensorboard", True),
    ("--tensorboard --no-tensorboard", "tensorboard", False),
    ("--use_dali", "use_dali", True),
    ("--use_dali --no-use_dali", "use_dali", False),
    ("--bad_images skip", "bad_images", "skip"),
    ("--test_only --evaluate F", "test_only", True),
    ("--test_only --no-test_only", "test_only", False),
    ("--debug", "debug", True),
    ("--debug --no-debug", "debug", False),
    ("--quiet", "quiet", True),
    ("--quiet --no-quiet", "quiet", False),
    ("--json", "json", True),
    ("--json --no-json", "json", False),
]
IGNORED = ("--bn_type", "--first-layer-type", "--init", "--mode", "--nonlinearity", "--random_rule")
# Defaults where nothing is given but the data set: those of the 1xN authors, and ours for the digits.
DEFAULTS = {
    "arch": "mobilenet_v2", "allocate": "uniform", "calibration": 512, "target": "native", "threads": 1, "N": 16,
    "N_choices": (), "full": False, "rearrange": False, "residual": None, "skip": (), "min_width": 1, "round_to": 1,
    "strict": False, "prune_steps": 1, "recalibrate": 0, "set": (), "num_epochs": 180, "finetune_epochs": 180,
    "train_batch_size": 256,
    "eval_batch_size": 100, "optimizer": "sgd", "lr": 0.01, "lr_policy": "cos", "lr_adjust": 30, "lr_gamma": 0.1,
    "lr_decay_step": (), "warmup_length": 5, "momentum": 0.9, "nesterov": False, "weight_decay": 4e-5,
    "label_smoothing": 0.0, "distill": 0.0, "distill_features": 0.0, "ema": 0.0,
    "gpus": (0,), "device": "auto", "precision": "auto", "workers": 2,
    "seed": 0, "image_size": None, "num_classes": None, "subset": None, "export_onnx": False, "tensorboard": False,
    "use_dali": False, "bad_images": "fatal", "test_only": False, "debug": False, "quiet": False, "json": False,
    "quantise": None, "qat_epochs": 0, "quantise_ranges": "mse", "recipe": "own", "epochs_scale": 1.0,
    "pretrained_model": None, "pruned_model": None, "resume": None, "method": None, "conv_type": None,
    "criterion": None, "granularity": None, "schedule": None, "scope": None, "pr_target": None, "flops_target": None,
    "speedup_target": None, "latency_target_ms": None, "data_path": None, "data_set": "cifar10",
}  # fmt: skip


@pytest.mark.parametrize(("typed", "name", "value"), TYPED)
def test_every_flag_means_what_it_meant(typed, name, value):
    found = getattr(parse(typed.split())[0], name)
    assert (str(found) if name in ("data_path", "job_dir") else found) == value
    assert type(found) is FLAGS[name].kind or FLAGS[name].many or isinstance(found, FLAGS[name].kind)


def test_every_default_is_what_it_was():
    args = parse(["--data_set=cifar10"])[0]
    assert {name: getattr(args, name) for name in FLAGS if name != "job_dir"} == DEFAULTS
    digits = parse([])[0]
    assert (digits.data_set, digits.num_epochs, digits.train_batch_size, digits.lr) == ("digits", 6, 32, 0.05)
    assert re.fullmatch(r"experiments/\d{8}-\d{6}", str(digits.job_dir))


def test_every_spelling_of_the_parser_is_written_out_here():
    known = {word for typed, _, _ in TYPED for word in typed.split() if word.startswith("--")}
    known |= {f"--no-{row.name}" for row in FLAGS.values() if row.kind is bool}
    spellings = {s for action in build_parser()._actions for s in action.option_strings}
    assert spellings == known | {*IGNORED, "-h", "--help", "--config", "--resume"}


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("value", [[], ["some"]])
def test_flags_that_change_nothing_are_accepted_and_said(name, value):
    args, notes = parse(["--data_set=cifar10", name, *value])
    assert args == Args(**DEFAULTS | {"job_dir": args.job_dir})
    assert notes == [f"{name} is accepted, since 1xN's scripts pass it, and changes nothing"]


@pytest.mark.parametrize("typed", ["--rear", "--pretrained F", "--eval F", "--job J", "--no-rear"])
def test_nothing_is_abbreviated(typed):
    with pytest.raises(ValueError, match="unrecognized arguments"):
        parse(typed.split())


def test_help_is_grouped_and_begins_with_what_a_first_run_needs():
    text = build_parser("kerf prune").format_help()
    assert text.startswith("usage: kerf prune [--FLAG VALUE ...]\n")
    assert text.index("  kerf prune --arch resnet20") < text.index("\noptions:")  # an example before any flag
    assert [text.index(f"\n{group}:\n") for group in GROUPS] == sorted(text.index(f"\n{g}:\n") for g in GROUPS)
    parts = {group: text.partition(f"\n{group}:\n")[2].partition("\n\n")[0] for group in GROUPS}
    listed = {group: re.findall(r"^  --(?:\[no-\])?(\w+)", part, re.MULTILINE) for group, part in parts.items()}
    for group, first in {
        "what to prune": ["arch", "pretrained_model"],
        "how": ["method", "pr_target", "N", "rearrange"],
        "training": ["num_epochs", "finetune_epochs", "lr", "train_batch_size"],
        "data": ["data_set", "data_path"],
        "output": ["job_dir", "export_onnx"],
    }.items():
        assert listed[group][: len(first)] == first
    assert [name for names in listed.values() for name in names] == [*FLAGS, "config"]


def test_help_says_every_default_and_no_ignored_flag():
    text = " ".join(build_parser().format_help().split())
    for row in FLAGS.values():
        if row.kind is not bool and not row.decided and row.default not in (None, ()):
            assert f"(default {flags.as_text(row.default)}" in text, row.name
    assert "(default 180; digits 6)" in text
    assert not [name for name in IGNORED if name in text]


def test_a_flag_is_a_row():
    row = FLAGS["lr_decay_step"]
    assert (row.kind, row.many, row.default, row.spellings) == (int, True, (), ("--lr_decay_step",))
    assert FLAGS["residual"].kind is bool
    assert FLAGS["data_path"].expected == "text"
    assert FLAGS["allocate"].expected == "one of uniform, sensitivity, obs"
    parser = argparse.ArgumentParser()
    row.add_to(parser)
    assert parser.parse_args(["--lr_decay_step", "1", "2"]).lr_decay_step == [1, 2]


@pytest.mark.parametrize(
    ("range", "inside", "outside"),
    [
        (flags.least(1), [1, 5.5], [0, float("nan"), float("inf")]),
        (flags.most(1), [1, 0], [1.5, float("nan")]),
        (flags.below(1), [0.99], [1, float("nan")]),
        (flags.POSITIVE, [1e-9], [0, -1, float("nan"), float("inf")]),
    ],
    ids=["least", "most", "below", "positive"],
)
def test_ranges(range, inside, outside):
    assert all(map(range.fits, inside))
    assert not any(map(range.fits, outside))


def test_values_as_they_are_typed():
    values = {"N": 4, "full": True, "rearrange": False, "skip": ["a", "b"], "set": [], "lr": None, "target": "a b"}
    assert flags.typed(values) == ["--N=4", "--full", "--no-rearrange", "--skip", "a", "b", "--target=a b"]
