"""What the flags ask for: a method with its settings, and what it may spend. Nothing is read or trained here."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kerf.compress.command.args import CONV_TYPES, FLAGS, Args
from kerf.compress.methods import METHODS
from kerf.compress.methods.composed import COMPOSED, PARTS, composed
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.weights import OneByN
from kerf.errors import BadInput

MAKERS: dict[str, Callable[..., Recipe]] = {**METHODS, COMPOSED: composed}


def method_of(args: Args) -> str:
    if args.conv_type is not None and args.conv_type not in CONV_TYPES:
        raise BadInput(f"unknown --conv_type {args.conv_type}: expected one of {', '.join(CONV_TYPES)}")
    if args.method is not None and args.method not in METHODS:
        raise BadInput(f"unknown --method {args.method}: expected one of {', '.join(METHODS)}")
    named = CONV_TYPES[args.conv_type] if args.conv_type else None
    if named and args.method and named != args.method:
        raise BadInput(f"--conv_type {args.conv_type} is method {named}, but --method is {args.method}: give one")
    if parts_of(args):
        if named or args.method:
            parts = ", ".join(f"--{part}" for part in parts_of(args))
            raise BadInput(f"{parts} put a method together: leave --method and --conv_type out")
        return COMPOSED
    return args.method or named or "one_by_n"


def parts_of(args: Args) -> dict[str, str]:
    """What is given of --criterion, --granularity, --schedule and --scope."""
    return {part: value for part in PARTS if (value := getattr(args, part)) is not None}


def timed(args: Args) -> bool:
    """Whether the target is a time."""
    return args.speedup_target is not None or args.latency_target_ms is not None


def allocates(args: Args) -> bool:
    """Whether layers get shares of their own."""
    return args.allocate != "uniform" or timed(args)


def plan(args: Args, method: str, weights: str | None) -> tuple[Recipe, Budget]:
    """The method with its settings, and what it may spend."""
    make = MAKERS[method]
    own = own_numbers(args.set, method) | parts_of(args)
    settings = Settings(
        n=args.N,
        full=args.full,
        rearrange=args.rearrange,
        seed=args.seed,
        by_macs=args.pr_target is None,
        residual=args.residual,
        skip=args.skip,
        min_width=args.min_width,
        round_to=args.round_to,
    )
    chosen = make(settings, **own)
    if args.flops_target is not None and not chosen.cuts:
        raise BadInput(f"method {method} removes a share of each layer: give --pr_target, not --flops_target")
    for_channels = [f"--{f.name}" for f in FLAGS.values() if f.channels and getattr(args, f.name) != f.default]
    if not chosen.cuts and for_channels:
        raise BadInput(f"method {method} cuts no channels: leave {', '.join(for_channels)} out")
    if allocates(args) and not chosen.zeroes_at_once:
        raise BadInput(f"method {method}: shares by layer are for methods that zero weights in one go (one_by_n)")
    if args.allocate == "obs" and method != "obs":
        raise BadInput(
            f"--allocate obs shares out by the prices of --method obs, not {method}: give --allocate sensitivity"
        )
    if allocates(args) and args.scope:
        raise BadInput("--scope says what competes with what, --allocate and targets in time decide that: give one")
    if allocates(args) and not args.pretrained_model:
        raise BadInput("layers are tried on the trained network: give it as --pretrained_model")
    if timed(args) and not isinstance(chosen.granularity, OneByN):
        raise BadInput(f"method {method}: times are known for 1xN blocks; use --method one_by_n with --N")
    for name in ("distill", "distill_features"):
        if getattr(args, name) and not weights:
            raise BadInput(f"--{name} learns from the trained dense network: give it as --pretrained_model")
    if args.pr_target is not None:
        sparsity = args.pr_target
    else:
        sparsity = 0.5 if args.flops_target is None else 1 - args.flops_target
    dense_epochs = 0 if args.pretrained_model else args.num_epochs
    budget = Budget(sparsity, dense_epochs, args.finetune_epochs, args.prune_steps)
    if not args.pruned_model and any(phase.pressure and not phase.epochs for phase in chosen.schedule(budget)):
        raise BadInput(
            f"method {method} prunes by training, and {args.finetune_epochs} epochs leave it none for that: "
            "give more --finetune_epochs"
        )
    once = replace(budget, steps=1)
    if args.prune_steps > 1 and list(chosen.schedule(budget)) == list(chosen.schedule(once)):
        raise BadInput(f"method {method} has its own schedule: leave --prune_steps out")
    return chosen, budget


def own_numbers(given: Sequence[str], method: str) -> dict[str, Any]:
    """--set name=value as keyword arguments of the method. Raises ValueError for what it does not have."""
    known = METHODS[method].numbers if method in METHODS else {}  # of parts put together, the flags are all there is
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name not in known or not equals:
            having = f"it has {', '.join(known)}" if known else "it has none"
            raise BadInput(f"--set {text}: expected NAME=VALUE with a number of method {method}; {having}")
        if isinstance(known[name], str):
            values[name] = value
            continue
        try:
            values[name] = int(value) if isinstance(known[name], int) else float(value)
        except ValueError:
            raise BadInput(f"--set {text}: {value!r} is not a number") from None
        if not math.isfinite(values[name]):
            raise BadInput(f"--set {text}: expected a finite number")
    return values
