"""argv -> Args: the parser and its --help, --config, a run to resume, and the defaults that depend on other flags."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kerf.compress.command.args import CONV_TYPES, FLAGS, GROUPS, Args, check
from kerf.compress.command.config import IGNORED, read_config
from kerf.compress.command.flags import as_text
from kerf.compress.command.folder import config_of, last
from kerf.compress.data.sets import EMBEDDED
from kerf.compress.methods.composed import PARTS
from kerf.compress.methods.own_recipes import OWN, own_flags
from kerf.compress.methods.published import flags_in_words, published
from kerf.console import Parser
from kerf.errors import BadInput

PRUNE = """\
Train a convolutional network, prune it, fine-tune it, export it.

  {0} --arch resnet20 --N 4 --rearrange --export_onnx
      everything from nothing, on scikit-learn's digits: minutes on a laptop
  {0} --data_set cifar10 --data_path DIR --arch resnet56 --pretrained_model FILE --method resrep --flops_target 0.5
      a trained network, and another method
  {0} --data_path DIR --arch mobilenet_v2 --evaluate FILE
      only the accuracy of what is in FILE, on ImageNet's folders"""

SENSITIVITY = """\
What pruning costs layer by layer: one at a time is pruned, the others stay whole. Takes the flags of a run.

  {0} --data_set cifar10 --data_path DIR --arch resnet20 --pretrained_model FILE --N 4 --rearrange"""

BESIDE = """\
Beside it: {0} methods [NAME], the table of methods; {0} show CHECKPOINT, what a run left; {0} sensitivity (the flags
above), what pruning costs layer by layer."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Says a flag's values once, and not behind each of its spellings."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.dest
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, '')}"


def build_parser(program: str = "kerf-prune") -> argparse.ArgumentParser:
    """What is not given is not in what it returns."""
    family = "kerf" if program.startswith("kerf ") else "kerf-prune"
    text = SENSITIVITY if program.endswith(" sensitivity") else PRUNE
    parser = Parser(
        prog=program,
        usage="%(prog)s [--FLAG VALUE ...]",
        description=text.format(f"python {program}" if program.endswith(".py") else program),
        epilog=BESIDE.format(family),
        formatter_class=Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for row in FLAGS.values():
        row.add_to(groups[row.group])
    groups[GROUPS[-1]].add_argument(
        "--config", type=Path, metavar="FILE", help="JSON of flag names and values; flags given here override it"
    )
    for name in IGNORED:
        parser.add_argument(name, nargs="?", dest=name, help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str] | None = None, program: str = "kerf-prune") -> tuple[Args, list[str]]:
    """A run's values, and lines to tell the user. A run to resume brings its own config.json.

    Raises BadInput or FileNotFoundError, each with one line.
    """
    typed = vars(build_parser(program).parse_args(sys.argv[1:] if argv is None else argv))
    given, ignored = read_config(typed.pop("config")) if "config" in typed else ({}, [])
    ignored += [name for name in typed if name in IGNORED]
    given |= {name: tuple(v) if isinstance(v, list) else v for name, v in typed.items() if name in FLAGS}
    notes = [f"{name} is accepted, since 1xN's scripts pass it, and changes nothing" for name in dict.fromkeys(ignored)]
    args, more = resolved(as_resumed(given) if "resume" in given else given)
    check(args)
    return args, notes + more


def resolved(given: Mapping[str, Any]) -> tuple[Args, list[str]]:
    """Args of what is given, with every default that other flags decide, and what to tell the user of that."""
    notes = []
    data_set = given.get("data_set", "imagenet" if "data_path" in given else "digits")
    if "data_set" not in given and "data_path" not in given:
        notes.append("no --data_path: using the embedded digits (scikit-learn, 1,797 images)")
    elif data_set in EMBEDDED and "data_path" in given:
        notes.append(f"--data_path is not needed for {data_set} and not read")
    own, said = recipe_values({"data_set": data_set, **given})
    notes += said
    by_data = {row.name: row.by_data.get(data_set, row.default) for row in FLAGS.values() if row.by_data}
    job_dir = Path("experiments") / datetime.now().strftime("%Y%m%d-%H%M%S")
    values = {"data_set": data_set, "job_dir": job_dir, **by_data, **given, **own}
    values.setdefault("finetune_epochs", values["num_epochs"])
    values.setdefault("lr_decay_step", decays(values))
    return Args(**values), notes


def decays(values: Mapping[str, Any]) -> tuple[int, ...]:
    """At which epochs --lr_policy step lowers the rate: as 1xN's README says, on ImageNet every --lr_adjust."""
    every = "lr_adjust" in values or values["data_set"] == "imagenet"
    return () if every or values.get("lr_policy") != "step" else (100, 150)


def recipe_values(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of flags by --recipe, those that are given apart, and lines to tell the user.

    Raises BadInput where no recipe is known, and for one that begins with trained weights where there are none.
    """
    scale, name = given.get("epochs_scale", 1.0), given.get("recipe", "own")
    if name == "own":
        if scale != 1:
            raise BadInput(
                "--epochs_scale shortens a recipe: give --recipe published, short or long, or --num_epochs itself"
            )
        return {}, []
    method, arch = method_named(given), given.get("arch", FLAGS["arch"].default)
    if name in OWN:
        own, trained, of = own_flags(name, scale, names_method(given)), OWN[name].trained, f"{name} recipe"
    else:
        recipe = published(method, given["data_set"], arch)
        own, trained, of = recipe.scaled(scale), recipe.trained, method
    if trained and not (given.get("pretrained_model") or given.get("pruned_model")):
        raise BadInput(f"--recipe {name}: {of} begins with a trained network; give it as --pretrained_model")
    typed = {text.partition("=")[0] for text in given.get("set", ())}
    own["set"] = (*(text for text in own["set"] if text.partition("=")[0] not in typed), *given.get("set", ()))
    longer = f", epochs times {scale:g}" * (scale != 1)
    if name in OWN:
        words = flags_in_words({flag: value for flag, value in own.items() if flag != "set" and flag not in given})
        notes = [f"recipe {name}{longer}: {words}"]
    else:
        notes = [f"recipe as published for {method} on {given['data_set']}{longer}"]
        notes += [f"it differs: {recipe.differs}"] if recipe.differs else []
    return {flag: value for flag, value in own.items() if flag == "set" or flag not in given}, notes


def names_method(given: Mapping[str, Any]) -> bool:
    """Whether these flags say what is pruned, by name or by the parts of a method."""
    return any(given.get(name) for name in ("method", "conv_type", *PARTS))


def method_named(given: Mapping[str, Any]) -> str:
    """The method that these flags name, whether or not there is such a one."""
    return given.get("method") or CONV_TYPES.get(given.get("conv_type", ""), "") or "one_by_n"


def as_resumed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the run to resume, and of those given the ones that may differ. Raises BadInput for others."""
    folder = given["resume"]
    if folder.is_file():  # the checkpoint itself, which the 1xN authors' program takes
        folder = folder.parent.parent
    if not config_of(folder).is_file():
        raise FileNotFoundError(f"no run to resume at {given['resume']}: expected a --job_dir with config.json in it")
    before, _ = read_config(config_of(folder))
    for name, value in given.items():
        was = before.get(name, FLAGS[name].default)
        if not FLAGS[name].free and was != value:
            which = "was not given to" if was is None else f"is not the {as_text(was)} of"
            raise BadInput(f"--{name} {as_text(value)} {which} the run in {folder}: resuming keeps its settings")
    return before | dict(given) | {"resume": folder, "job_dir": folder}


def continued(args: Args, notes: list[str]) -> tuple[Args, list[str]]:
    """Under torchrun, which starts a failed run again with the same flags, those continue the unfinished run.

    That is one in --job_dir with the same settings, a finished epoch and no summary.json.
    """
    folder = args.job_dir
    if "TORCHELASTIC_RUN_ID" not in os.environ or args.resume or args.pruned_model:
        return args, notes
    if not (config_of(folder).is_file() and last(folder).is_file()) or (folder / "summary.json").exists():
        return args, notes
    before, _ = read_config(config_of(folder))
    if any(before.get(row.name, row.default) != getattr(args, row.name) for row in FLAGS.values() if not row.free):
        return args, notes
    return dataclasses.replace(args, resume=folder), [*notes, f"continuing the unfinished run in {folder}"]
