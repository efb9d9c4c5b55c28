"""Reports as model_tune.py writes them, with figures made up, and a page's parser."""

import json
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects ids, text and attributes, and fails on a tag that is not closed in order."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.ids, self.words, self.numbers = [], set(), [], []
        self.tags: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert name not in ("src", "href", "srcset", "onclick", "onload"), f"<{tag} {name}> reaches outside"
            if name == "id":
                assert value not in self.ids
                self.ids.add(value)
            if name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "points", "d"):
                self.numbers.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def engine(median: float) -> dict:
    samples = [median * (1 + 0.01 * (i % 5)) for i in range(30)]
    return {"median": median, "p10": median * 0.99, "p90": median * 1.05, "samples": samples}


def minimal() -> dict:
    row = {"op": "conv", "shape": [16, 8, 1, 1], "config": {"tile": 6}, "peak_share": 0.5}
    return {
        "model": "net <1×4>",
        "target": "llvm -mcpu=native",
        "cpu": "Some CPU",
        "threads": 1,
        "batch": 1,
        "verified": True,
        "max_abs_error": 2.5e-6,
        "latency_ms": {"kerf": engine(4.0), "onnxruntime": engine(6.0), "openvino": engine(5.0)},
        "speedup": {"against": "openvino", "median": 1.25, "ci95": [1.2, 1.3]},
        "bytes": {"dense": 14_000_000, "bundle": 9_200_000},
        "layers": [
            {**row, "name": "a", "block": [4, 1], "density": 0.5, "kernel": "bsr", "kerf_us": 50.0, "dense_us": 80.0},
            {
                **row,
                "name": "b",
                "block": None,
                "density": 1.0,
                "kernel": "depthwise",
                "kerf_us": 9.5,
                "dense_us": None,
            },
        ],
    }


def complete() -> dict:
    return minimal() | {
        "accuracy": {"top1_dense": 90.42, "top1_pruned": 31.0, "top1": 89.9, "macs_dense": 3e8, "macs": 1.6e8},
        "commands": ["python imagenet.py --N 4", "python model_tune.py --bsr 4"],
        "versions": {"numpy": "2.0"},
        "machine": {"cores": 2, "vector_sets": ["avx2", "fma"]},
        "date": "2025-01-01T00:00:00+00:00",
        "training": [
            {"phase": "train", "epoch": 0, "loss": 2.0, "top1": 30.0, "val_loss": 2.1, "val_top1": 29.0},
            {"phase": "fine-tune", "epoch": 0, "loss": 1.0, "top1": 60.0, "val_loss": 1.2, "val_top1": 58.0},
        ],
        "block_patterns": [
            {
                "layer": "a",
                "n": 4,
                "shape": [16, 8, 1, 1],
                "blocks": [4, 8],
                "kept": 0.7,
                "rows": ["10110000", "11111111"],
            },
            {"layer": "c", "n": 4, "shape": [8, 4, 1, 1], "blocks": [2, 4], "kept": 0.5, "rows": ["1010", "0101"]},
        ],
        "runs": [{"name": "sparser <b>", "top1": 88.0, "ms": 3.0, "sparsity": 0.8, "speedup": 2.0}],
    }


def row(name, **changed) -> dict:
    """A layer of 1,000 weights that runs sparse on half of its blocks."""
    made = {"name": name, "op": "conv", "shape": "8x4x4->16 1x1", "block": "4x1", "density": 0.5, "weights": 1000}
    made |= {"zeros": 0.5, "zero_blocks": 0.5, "macs": 50, "macs_dense": 100, "kernel": "bsr", "config": {}}
    return made | {"together_with": None, "kerf_us": 5.0, "dense_us": 8.0, "peak_share": 0.4} | changed


def dense_row(name, **changed) -> dict:
    return row(name, **{"block": None, "density": 1.0, "macs": 100, "kernel": "dense", "kerf_us": 8.0} | changed)


def job(folder, name, top1, ms, macs=50, data="cifar10", cpu="A <fast> one", layers=None):
    (folder / name / "model.kerf").mkdir(parents=True)
    summary = {
        "method": "one_by_n",
        "data_set": data,
        "top1": top1,
        "top1_dense": 90.0,
        "macs": macs,
        "macs_dense": 100,
    }
    (folder / name / "summary.json").write_text(json.dumps(summary))
    if ms:
        latency = {"median": ms, "p10": ms * 0.9, "p90": ms * 1.1, "samples": [ms]}
        speedup = {"against": "onnxruntime", "median": 10 / ms, "ci95": [9 / ms, 11 / ms]}
        built = {"latency_ms": {"kerf": latency}, "speedup": speedup, "cpu": cpu, "threads": 1, "batch": 1}
        built["layers"] = layers or [row("a")]
        (folder / name / "model.kerf" / "report.json").write_text(json.dumps(built))
