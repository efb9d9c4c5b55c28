"""The DALI loader against PIL's: on the photographs of KERF_PHOTOGRAPHS (val/<wnid>/*.JPEG) where that is set."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kerf.compress import cli
from kerf.compress.data.batches import STD, WHOLE, Part
from kerf.compress.data.photographs import Folder
from kerf.compress.data.sets import Options, open_data
from tests.helpers.run_files import killed_after, read, rows

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install '.[dali]'")
from kerf.compress.data.dali import Dali

PHOTOGRAPHS = os.environ.get("KERF_PHOTOGRAPHS")
gpu = pytest.param("cuda:0", marks=pytest.mark.gpu)


def photograph(path, width, height, seed=0):
    """Low frequencies and some grain."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.BICUBIC)) + random.normal(0, 5, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for i in range(13):
            photograph(tmp_path / split / f"class{i % 3}" / f"{i}.jpg", 150 + 20 * i, 140 + 9 * (i % 5), i)
    return tmp_path


def loaders(path, device="cpu", **options):
    return [open_data("imagenet", Options(path, dali_device=device, **options)) for device in (None, device)]


def apart(ours, dalis, epoch=0, seed=0, part=WHOLE):
    """|difference| in steps of 1/255, of all pixels of an epoch; the labels must be the same."""
    differences = []
    for (x, y), (dali_x, dali_y) in zip(ours.epoch(epoch, seed, part), dalis.epoch(epoch, seed, part), strict=True):
        assert torch.equal(y, dali_y)
        differences.append(((x - dali_x.cpu()) * torch.tensor(STD).view(3, 1, 1) * 255).abs())
    return torch.cat(differences)


@pytest.mark.parametrize("part", [WHOLE, Part(1, 2)])
def test_images_are_those_of_pil(folder, part):
    ours, dalis = loaders(folder, image_size=96, train_batch=4, eval_batch=5, workers=2)
    assert dalis.test.names == ours.test.names
    held = apart(ours.test, dalis.test, part=part)
    assert len(held) == (13 if part.count == 1 else 7)  # the short last batch once
    assert held.max() < 0.5
    for epoch, seed in ((0, 0), (3, 5)):  # the same order, crops and mirroring
        assert apart(ours.train, dalis.train, epoch, seed, part).max() < 0.5


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_images_resized_by_dali_are_nearly_those_of_pil(folder, device):
    data = open_data("imagenet", Options(folder, image_size=96, train_batch=4, eval_batch=5))
    for split in (data.train, data.test):
        common = (split.listing, split.image_size, split.size, split.workers, split.training)
        differences = apart(Folder(*common), Dali(*common, device=device, own_resizing=True), 2, 3)
        assert differences.mean() < 1
        assert differences.quantile(0.99) < 4


def test_an_epoch_is_a_function_of_seed_and_epoch_whatever_the_threads(folder):
    epochs = []
    for workers in (0, 2):
        _, data = loaders(folder, image_size=64, train_batch=4, workers=workers)
        list(data.train.epoch(0, 7))
        epochs.append(torch.cat([x for x, _ in data.train.epoch(4, 7)]))
    assert torch.equal(*epochs)
    assert not torch.equal(epochs[0], torch.cat([x for x, _ in data.train.epoch(5, 7)]))


def test_batches_stay_as_they_were_when_the_next_are_made(folder):
    _, data = loaders(folder, image_size=64, train_batch=4)
    batches = [(x, x.clone()) for x, _ in data.train.epoch(0, 0)]
    assert all(torch.equal(x, before) for x, before in batches)


def test_images_of_every_kind_are_rgb_as_by_pil(tmp_path):
    for i, (mode, suffix) in enumerate(
        [("L", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "webp")]
    ):
        photograph(tmp_path / "first.jpg", 140, 100, i)
        (tmp_path / "val" / "class0").mkdir(parents=True, exist_ok=True)
        Image.open(tmp_path / "first.jpg").convert(mode).save(tmp_path / "val" / "class0" / f"{mode}.{suffix}")
    ours, dalis = loaders(tmp_path, image_size=64, workers=1)
    for _ in range(2):  # the second time what is known of a file is used
        assert apart(ours.test, dalis.test).max() < 0.5


@pytest.mark.parametrize("broken", ["cut", "text", "middle"])
def test_a_broken_file_is_named_and_fatal_or_skipped_as_asked(folder, capsys, broken):
    for split in ("train", "val"):
        path = next((folder / split).glob("*/4.jpg"))
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-200], "text": b"no image", "middle": content[:300] + b"\xff\xd9"}[broken])
    options = dict(image_size=64, eval_batch=5, train_batch=3)
    _, data = loaders(folder, **options)
    with pytest.raises(ValueError, match=r"4\.jpg cannot be read as an image"):
        list(data.test.epoch(0, 0))
    ours, data = loaders(folder, bad_images="skip", **options)
    for epoch in range(2):
        assert [len(y) for _, y in data.test.epoch(0, 0)] == [5, 4, 3]
        for whole, dalis in zip(ours.train.epoch(epoch, 0), data.train.epoch(epoch, 0), strict=True):
            assert torch.equal(whole[1], dalis[1])  # the same images stand in
            assert len(whole[1]) == 3
    assert data.test.skipped == {"val/class1/4.jpg"}
    assert capsys.readouterr().err.count("warning: ") == len(ours.train.skipped | data.train.skipped) * 2 + 1


def test_a_stopped_run_goes_on_as_with_pil(folder):
    flags = ["--data_set=imagenet", f"--data_path={folder}", "--image_size=48", "--arch=resnet20", "--method=dense"]
    flags += ["--num_epochs=2", "--train_batch_size=6", "--precision=f32", "--device=cpu"]
    assert cli.main([*flags, f"--job_dir={folder / 'pil'}"]) == 0
    assert cli.main([*flags, "--use_dali", f"--job_dir={folder / 'whole'}"]) == 0
    with killed_after(3):  # 2 steps an epoch
        assert cli.main([*flags, "--use_dali", f"--job_dir={folder / 'out'}"]) == 130
    assert cli.main([f"--resume={folder / 'out'}"]) == 0
    assert rows(folder / "out") == rows(folder / "whole") == rows(folder / "pil")
    predictions = [read(folder / name / "predictions.json") for name in ("out", "whole", "pil")]
    assert predictions[0] == predictions[1] == predictions[2]


@pytest.mark.skipif(not PHOTOGRAPHS, reason="KERF_PHOTOGRAPHS names no folder of photographs (val/<wnid>/*.JPEG)")
def test_photographs_are_those_of_pil():
    ours, dalis = loaders(Path(PHOTOGRAPHS), workers=2, eval_batch=50, subset=200)
    assert apart(ours.test, dalis.test).max() < 0.5
