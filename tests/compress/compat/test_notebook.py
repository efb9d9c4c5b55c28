"""docs/rni.ipynb, cell by cell, on the embedded digits."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[3] / "docs" / "rni.ipynb"
SMALL = {"epochs": 1, "methods": ["rni"], "shares": [0.5]}


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code[0]["metadata"] == {"tags": ["parameters"]}
    assert not any(cell["outputs"] for cell in code)
    names: dict = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if number == 0:
            assert set(SMALL) <= set(names)
            names |= SMALL
    assert names["dataset"] == "digits"
    assert [len(row) for row in names["results"].values()] == [2]
    inner = [m.conv1.out_channels for m in names["narrow"].modules() if hasattr(m, "conv2")]
    assert sum(inner) == 168  # half of the filters inside blocks
    assert (tmp_path / "narrow.onnx").is_file()
    assert "50% removed" in capsys.readouterr().out
