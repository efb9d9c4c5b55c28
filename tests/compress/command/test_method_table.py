"""What `kerf-prune methods` says of every method."""

import io
import re

import pytest
from rich.console import Console

from kerf.compress import cli
from kerf.compress.command import show
from kerf.compress.command.method_table import row, rows
from kerf.compress.methods import METHODS
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.pressure import NOTHING
from kerf.compress.units.weights import Filter, OneByN, Patterns, Weight


def printed(*name: str, width: int = 120) -> str:
    file = io.StringIO()
    show.methods(*(name or [None]), Console(file=file, width=width))
    return file.getvalue()


def test_a_line_for_each():
    text = printed(width=160)
    names = [line.split()[0] for line in text.splitlines() if re.match(r"\w", line)][1:]
    assert [name for name in names if name != "kerf-prune"] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_one_with_its_numbers(name):
    text = printed(name, width=4000)
    for number in METHODS[name].numbers:
        assert f"{number}=" in text
    assert "Differs:" in text or name in ("dense", "one_by_n", "random_block", "weight", "filter", "uniform_scaling")


def test_words_are_those_of_the_recipes():
    assert {r.when for r in rows()} == {"never", "before training", "while training", "mid-training", "after training"}
    resrep, hrank, darb = row("resrep"), row("hrank"), row("darb")
    assert (resrep.removes, resrep.when, resrep.needs) == ("channels", "while training", "own training")
    assert (hrank.scope, hrank.needs, hrank.status) == ("each layer", "640 images", "faithful")
    assert (darb.removes, darb.scope, darb.status) == ("weights", "its own rule", "style")
    assert (row("pconv").removes, row("pconv").scope) == ("kernels' entries", "each layer")
    assert {name: row(name).brings for name in ("pconv", "darb", "weight", "one_by_n", "l1", "dense")} == {
        "pconv": "size", "darb": "size", "weight": "size", "one_by_n": "size, speed", "l1": "size, speed",
        "dense": "nothing",
    }  # fmt: skip
    assert {row(name).status for name in ("dsc1", "dsc2", "pconv")} == {"style"}
    assert row("snapshots").paper == "Le et al., arXiv 2006.11487"
    assert row("slimming").when == "mid-training"
    assert row("soft_movement").scope == "all layers"
    assert row("resrep").numbers["lasso"] is None
    assert row("resrep").paper == "Ding et al., arXiv 2007.03260"


@pytest.mark.parametrize("name", METHODS)
def test_rows_say_what_recipes_and_heads_do(name):
    method = METHODS[name]
    recipe, head = method(Settings(by_macs=True)), method.head
    assert re.search(r"^Paper:", head, re.M)
    assert re.search(r"^Code:", head, re.M)
    assert re.search(r"^Differs:", head, re.M)
    assert ("-style" in head.partition("\n")[0]) is not method.faithful
    assert method.paper == "none" or method.paper.split("arXiv ")[1] in head
    assert method.paper == "none" or re.split(r" and | et al", method.paper)[0] in head
    assert recipe.cuts == (method.target in ("either", "macs"))
    if method.target != "nothing":
        assert method.removes == UNITS.get(type(recipe.granularity), "channels")
    assert ("training" in method.needs) == (recipe.pressure is not NOTHING)
    assert ("images" in method.needs) == ("images" in method.numbers)
    if method.target == "macs":
        with pytest.raises(ValueError, match="--flops_target"):
            method(Settings())
    else:
        method(Settings())


UNITS = {OneByN: "1xN blocks", Weight: "weights", Filter: "filters' weights", Patterns: "kernels' entries"}


def test_wrong_use_is_refused(capsys):
    assert cli.main(["methods", "odd"]) == 2
    assert "no method odd: expected one of dense, one_by_n" in capsys.readouterr().err
    assert cli.main(["methods", "l1", "l1"]) == 2
    assert "unrecognized arguments: l1" in capsys.readouterr().err
