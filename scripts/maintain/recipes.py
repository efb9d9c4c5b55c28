"""Writes docs/recipes.md from the table of published recipes; tests/test_docs.py compares.

Launch:    python scripts/maintain/recipes.py
Hardware:  any.
Expected:  docs/recipes.md, unchanged unless the table changed.
"""

from pathlib import Path

from kerf.compress.methods import published

FILE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
HEAD = """\
# Recipes as published

Written by `python scripts/maintain/recipes.py` from compress/methods/published.py; edit that. `--recipe published`
takes a row: "before" are epochs before pruning, "after" all that follow. Numbers marked unscaled are left to the method
where `--epochs_scale` is not 1.
"""


def text() -> str:
    rows = published.rows()
    lines = [HEAD, f"| {' | '.join(rows[0])} |", "|" + "-|" * len(rows[0])]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)]) + "\n"


if __name__ == "__main__":
    import _page

    raise SystemExit(_page.written("recipes", __doc__, FILE, text))
