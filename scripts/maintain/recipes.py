"""Writes docs/recipes.md from the tables of recipes; tests/test_docs.py compares.

Launch:    python scripts/maintain/recipes.py
Hardware:  any.
Expected:  docs/recipes.md, unchanged unless the table changed.
"""

from pathlib import Path

from kerf.compress.methods import own_recipes, published

FILE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
OWN = """
# This project's recipes

From compress/methods/own_recipes.py, for any data set and a trained network (`--pretrained_model`): `--recipe short` or
`long`. Flags that are given besides win; where `--method` is, `--rearrange` and `--N` of the row are left out, too.
"""
HEAD = """\
# Recipes as published

Written by `python scripts/maintain/recipes.py` from compress/methods/published.py; edit that. `--recipe published`
takes a row: "before" are epochs before pruning, "after" all that follow. Numbers marked unscaled are left to the method
where `--epochs_scale` is not 1.
"""


def text() -> str:
    return f"{HEAD}\n{table(published.rows())}{OWN}\n{table(own_recipes.rows())}"


def table(rows: list[dict[str, str]]) -> str:
    lines = [f"| {' | '.join(rows[0])} |", "|" + "-|" * len(rows[0])]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    import _page

    raise SystemExit(_page.written("recipes", __doc__, FILE, text))
