"""--config: flags from a JSON object, refused by the file's name where they cannot be meant."""

import json
from pathlib import Path

import pytest

from kerf.compress.command.args import FLAGS
from kerf.compress.command.config import read_config
from kerf.compress.command.parsing import parse
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def config(folder: Path, content: object) -> Path:
    path = folder / "c.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_it_gives_defaults_that_flags_override(tmp_path):
    values = {"N": 8, "rearrange": True, "lr_decay_step": [3, 4], "label_smoothing": 0.1, "gpus": [0]}
    path = config(tmp_path, values)
    args, _ = parse([f"--config={path}", "--N=2"])
    assert (args.N, args.rearrange, args.lr_decay_step, args.label_smoothing) == (2, True, (3, 4), 0.1)
    assert parse([f"--config={path}", "--no-rearrange"])[0].rearrange is False


@pytest.mark.parametrize(
    ("values", "meant"),
    [
        ({"lr": "0.25", "N": "4"}, {"lr": 0.25, "N": 4}),  # as they are typed
        ({"lr": 1}, {"lr": 1.0}),
        ({"gpus": 1, "skip": "conv*"}, {"gpus": (1,), "skip": ("conv*",)}),
        ({"method": None, "skip": []}, {}),
        ({"pretrain_model": "F", "lr_type": "exp", "label-smoothing": 0.1, "evaluate": "G"},
         {"pretrained_model": "F", "lr_policy": "exp", "label_smoothing": 0.1, "pruned_model": "G"}),
        ({"target": "llvm -mcpu=x", "arch": "--odd"}, {"target": "llvm -mcpu=x", "arch": "--odd"}),
        ({"data_path": "D", "full": False}, {"data_path": Path("D"), "full": False}),
    ],
)  # fmt: skip
def test_what_it_may_hold(tmp_path, values, meant):
    found, ignored = read_config(config(tmp_path, values))
    assert found == meant
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in meant.items()}
    assert ignored == []


def test_what_changes_nothing_is_said(tmp_path):
    path = config(tmp_path, {"init": "kaiming_normal", "first-layer-type": None})
    notes = parse([f"--config={path}", "--init=x", "--data_set=cifar10"])[1]
    assert [note.partition(" is accepted")[0] for note in notes] == ["--init", "--first-layer-type"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON (Expecting value"),
        ("lr: 0.1", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([["lr", 0.1]], "holds a list, expected an object; expected flag names and values"),
        ("3", "holds a int, expected an object"),
        ({"lrr": 0.1}, "no flag is called 'lrr'; did you mean lr?"),
        ({"job-dir": "J"}, "no flag is called 'job-dir'; did you mean job_dir?"),
        ({"hidden_layers": 3}, "no flag is called 'hidden_layers'; see --help"),
        ({"config": "d.json"}, "no flag is called 'config'"),
        ({"help": True}, "no flag is called 'help'"),
        ({"lr": "fast"}, 'lr is "fast", expected a number'),
        ({"lr": True}, "lr is true, expected a number"),
        ({"lr": [0.1, 0.2]}, "lr is [0.1, 0.2], expected a number"),
        ({"lr": {"base": 1}}, 'lr is {"base": 1}, expected a number'),
        ({"N": 4.5}, "N is 4.5, expected a whole number"),
        ({"lr_decay_step": [1, "x"]}, 'lr_decay_step is [1, "x"], expected a list, each a whole number'),
        ({"lr_decay_step": [None]}, "lr_decay_step is [null], expected a list, each a whole number"),
        ({"rearrange": "yes"}, 'rearrange is "yes", expected true or false'),
        ({"rearrange": 1}, "rearrange is 1, expected true or false"),
        ({"lr_policy": "cosine"}, 'lr_policy is "cosine", expected one of cos, cos_step'),
        ({"job_dir": ["J"]}, 'job_dir is ["J"], expected text'),
    ],
)
def test_what_it_may_not_hold_is_one_line_with_its_name(tmp_path, content, message):
    path = config(tmp_path, content)
    with pytest.raises(BadInput) as error:
        read_config(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not JSON"):
        read_config(tmp_path / "c.json")
    for missing in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises((FileNotFoundError, BadInput), match=r"expected flag names and values, such as the config"):
            read_config(missing)


def test_ranges_hold_for_it_too(tmp_path):
    for content, message in (({"N": 0}, "--N is 0: expected 1 or more"), ('{"lr": NaN}', "--lr is nan: expected a")):
        path = config(tmp_path, content)
        with pytest.raises(BadInput, match=message):
            parse([f"--config={path}"])


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_refuses_an_object(tmp_path, name):
    with pytest.raises(BadInput, match=f"{name} is "):
        read_config(config(tmp_path, {name: {"a": 1}}))
