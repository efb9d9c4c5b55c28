"""Two processes do what one does. All jobs of a module share one start, because a start costs seconds."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kerf.compress import cli
from kerf.compress.data.batches import Part
from kerf.compress.data.sets import Options, open_data
from kerf.compress.training import checkpoint, distributed
from kerf.compress.training.global_batch import batch_norm
from tests.helpers.image_files import damage, write_folder
from tests.helpers.run_files import in_double, read, rows
from tests.helpers.sweeps import sweep

ROOT = Path(__file__).resolve().parents[3]
# batches of 7 and 17 test images: parts are uneven
BASE = ["--data_set=synthetic", "--subset=17", "--train_batch_size=7", "--device=cpu", "--precision=f32", "--lr=0.002"]
SMALL = [*BASE, "--arch=resnet20", "--num_epochs=1", "--warmup_length=0"]
CASES = {
    "one_by_n": ["--method=one_by_n", "--N=4", "--rearrange", "--recalibrate=2"],
    "l1": ["--method=l1", "--flops_target=0.6", "--label_smoothing=0.1"],
    "resrep": ["--method=resrep", "--flops_target=0.8", "--finetune_epochs=3", "--set", "start=0"],
    "csgd": ["--method=csgd", "--flops_target=0.7", "--finetune_epochs=2"],
    "rni": ["--method=rni", "--flops_target=0.7"],
    "dmcp": ["--method=dmcp", "--flops_target=0.7", "--finetune_epochs=2"],
    "bwcp": ["--method=bwcp", "--flops_target=0.7"],
    "c2s2": ["--method=c2s2", "--flops_target=0.7", "--finetune_epochs=2"],
    "pconv": ["--method=pconv", "--pr_target=0.7", "--finetune_epochs=2"],
    "frs": ["--method=frs", "--flops_target=0.7", "--finetune_epochs=2"],
    "play_and_prune": [
        "--method=play_and_prune",
        "--flops_target=0.8",
        "--finetune_epochs=2",
        "--set",
        "tolerance=0.2",
    ],
    "drl": [
        *("--method=drl", "--flops_target=0.7", "--finetune_epochs=2", "--set"),
        *("episodes=3", "bit_episodes=2", "images=8", "tuned=14", "size=0.2"),
    ],
    "snapshots": ["--method=snapshots", "--flops_target=0.7", "--finetune_epochs=2", "--set", "peak=0.01"],
    "dropout": ["--arch=mobilenet_v2_x0_5", "--method=random_block", "--N=4"],
}
STOPPED = [*SMALL, "--method=resrep", "--flops_target=0.8", "--num_epochs=2", "--seed=3"]


def torchrun(*command: str, restarts: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Two processes on this machine; their output, with torchrun's own report on failures among the errors."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    return subprocess.run(
        [*launch, f"--max_restarts={restarts}", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def jobs(file: Path, *flags: list[str], kill: int | None = None) -> str:
    file.write_text(json.dumps([{"flags": f, "kill": kill} for f in flags]))
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def output(folder, request):
    """What all cases that are tested print, run by two processes."""
    tested = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    names = [name for name in CASES if name == "one_by_n" or name in tested]
    runs = [[*SMALL, *CASES[name], f"--job_dir={folder / 'two' / name}"] for name in names]
    weights = folder / "two" / "one_by_n" / "checkpoint" / "best.safetensors"
    runs.append([*SMALL, f"--evaluate={weights}", f"--job_dir={folder / 'evaluated'}"])
    runs.append([*photographs(folder / "data"), f"--job_dir={folder / 'two' / 'skipping'}"])
    done = torchrun(str(Path(__file__).with_name("two_processes.py")), jobs(folder / "jobs.json", *runs))
    assert done.returncode == 0, done.stderr
    return done.stdout


def photographs(data: Path) -> list[str]:
    """Flags of a run over image files, most of which are bad in the first process's part of them."""
    if not data.exists():
        for split in ("train", "val"):
            write_folder(data, split, images=6, size=40)
            damage(data / split, *(f"class0/{i}.png" for i in range(5)), "class2/3.png")
    flags = ["--data_set=imagenet", f"--data_path={data}", "--image_size=32", "--workers=0", "--bad_images=skip"]
    flags += ["--arch=resnet20", "--method=dense", "--num_epochs=1", "--train_batch_size=5", "--lr=0.002"]
    return [*flags, "--eval_batch_size=4", "--device=cpu", "--precision=f32"]


@pytest.mark.parametrize("name", sweep(CASES, quick=("one_by_n",)))
def test_two_processes_give_the_network_of_one(folder, output, name):
    """The same channels and zeros, weights and losses up to rounding, and every prediction."""
    one, two = folder / "one" / name, folder / "two" / name
    with in_double():
        assert cli.main([*SMALL, *CASES[name], f"--job_dir={one}"]) == 0
    ends = [checkpoint.load(f / "checkpoint" / "best.safetensors") for f in (one, two)]
    assert ends[0][1] == ends[1][1]  # which channels are kept
    for path, expected in ends[0][0].items():
        found = ends[1][0][path]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=path)
        assert torch.equal(found == 0, expected == 0), path
    for row, other in zip(rows(one), rows(two), strict=True):
        assert {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-6) for k, v in row.items()} == other
    assert read(one / "predictions.json") == read(two / "predictions.json")
    summary, other = read(one / "summary.json"), read(two / "summary.json")
    for key in ("images", "top1", "top5", "top1_pruned", "macs", "params", "widths", "block_density"):
        assert summary[key] == other[key], key
    assert summary["images"] == 17


def test_two_processes_skip_the_images_that_one_does(folder, output):
    one, two = folder / "one" / "skipping", folder / "two" / "skipping"
    with in_double():
        assert cli.main([*photographs(folder / "data"), f"--job_dir={one}"]) == 0
    for row, other in zip(rows(one), rows(two), strict=True):
        assert {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-6) for k, v in row.items()} == other
    assert read(one / "predictions.json") == read(two / "predictions.json")
    assert len(read(one / "predictions.json")) == 12
    assert read(one / "summary.json")["images_skipped"] == read(two / "summary.json")["images_skipped"] > 6


def test_one_process_writes_and_speaks(folder, output):
    assert output.count(f"results in {folder / 'two' / 'one_by_n'}") == 1
    left = {path.name for path in folder.rglob("*") if path.name.startswith(".")}
    assert not left  # temporary files


def test_evaluation_counts_every_image_once(folder, output):
    trained, evaluated = (read(folder / name / "summary.json") for name in ("two/one_by_n", "evaluated"))
    assert (evaluated["top1"], evaluated["images"]) == (trained["top1"], 17)
    assert read(folder / "evaluated" / "predictions.json") == read(folder / "two" / "one_by_n" / "predictions.json")


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_loses_nothing(folder):
    done = torchrun(
        str(Path(__file__).with_name("two_processes.py")),
        jobs(folder / "whole.json", [*STOPPED, f"--job_dir={folder / 'whole'}"]),
    )
    assert done.returncode == 0, done.stderr
    script, stopped = str(Path(__file__).with_name("two_processes.py")), folder / "stopped"
    # 4 steps an epoch: killed in the second epoch under pressure
    command = jobs(folder / "killed.json", [*STOPPED, f"--job_dir={stopped}"], kill=14)
    done = torchrun(script, command, restarts=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"continuing the unfinished run in {stopped}") == 1
    assert rows(stopped) == rows(folder / "whole")
    ends = [checkpoint.read_weights(f / "checkpoint" / "best.safetensors") for f in (stopped, folder / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def exit_codes(report: str) -> list[int]:
    """Of the processes in torchrun's report on a failure."""
    return [int(code) for code in re.findall(r"exitcode +: (-?\d+) +\(pid", report)]


@pytest.mark.slow  # half a minute each: a start of their own
@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--train_batch_size=1"], "1 images in a training batch for 2 processes"), (["--lr=1e30"], "lower --lr")],
)
def test_an_error_is_printed_once_and_ends_all(tmp_path, flags, message):
    done = torchrun(str(ROOT / "imagenet.py"), *SMALL, "--method=dense", *flags, f"--job_dir={tmp_path / 'out'}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert exit_codes(done.stderr) == [2, 2], done.stderr


@pytest.mark.parametrize("training", [False, True])
def test_parts_are_the_batch_that_one_process_has(training):
    data = open_data("synthetic", Options(train_batch=7, eval_batch=5, subset=33))
    split = data.train if training else data.test
    whole = list(split.epoch(2, 5))
    parts = [list(split.epoch(2, 5, Part(i, 3))) for i in range(3)]
    if training:
        joined = [[torch.cat(column) for column in zip(*of_step)] for of_step in zip(*parts, strict=True)]
        assert all(torch.equal(a, b) for ours, theirs in zip(joined, whole, strict=True) for a, b in zip(ours, theirs))
    else:
        joined = torch.cat([x for part in parts for x, _ in part])
        assert torch.equal(joined, torch.cat([x for x, _ in whole]))


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_and_its_gradients_are_torchs(monkeypatch, affine):
    """On one process, whose sums are all there is; against double precision's numeric gradients by comparison."""
    monkeypatch.setattr(distributed, "stacked", lambda values: values[None])
    torch.manual_seed(0)
    x = 3 + torch.randn(4, 5, 3, 3).to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(5), torch.randn(5)) if affine else (None, None)
    found = []
    for normalise in (batch_norm, F.batch_norm):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
        mean, variance = torch.zeros(5), torch.ones(5)
        y = normalise(inputs[0], mean, variance, *(inputs[1:] or (None, None)), True, 0.1, 1e-5)
        (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        found.append([y, mean, variance, *(t.grad for t in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
