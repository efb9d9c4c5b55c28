import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from kerf.compress import cli
from kerf.compress.data.batches import InMemory, Part, crop_and_flip, generator, normalise
from kerf.compress.data.photographs import centred, crop_box, random_crop, resized
from kerf.compress.data.sets import Options, open_data
from kerf.compress.training.train import evaluate
from tests.helpers.image_files import damage, write_folder


def test_digits_parts_are_disjoint_and_do_not_depend_on_the_run():
    data, again = (open_data("digits", Options(train_batch=size)) for size in (64, 32))
    parts = [set(p.names) for p in (data.train, data.val, data.test)]
    assert [len(p) for p in parts] == [1294, 143, 360]
    assert len(set.union(*parts)) == 1797
    assert parts == [set(p.names) for p in (again.train, again.val, again.test)]
    x, y = next(data.test.epoch(0, 0))
    assert x.shape == (256, 3, 32, 32)
    assert y.dtype == torch.int64


def test_pixels_are_normalised_as_imagenet():
    x = normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert x[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-5)
    assert x[1, :, 0, 0].tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], rel=1e-5)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    data = open_data("synthetic", Options(train_batch=64))
    first, again, other = (next(data.train.epoch(e, s))[0] for e, s in ((3, 1), (3, 1), (4, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_are_windows_of_the_padded_image():
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(32, 1, 1, 1)
    out = crop_and_flip(pixels, generator(0, 0), padding=2, flip=True)
    padded = torch.nn.functional.pad(pixels[0, 0], (2, 2, 2, 2))
    windows = [padded[t : t + 8, l : l + 8] for t in range(5) for l in range(5)]
    windows += [w.flip(1) for w in windows]
    found = [next(i for i, w in enumerate(windows) if torch.equal(w, image[0])) for image in out]
    assert len(set(found)) > 10
    assert min(found) < 25 <= max(found)


def test_a_short_last_batch_is_evaluated_but_not_trained_on():
    pixels, labels = torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.arange(10)
    names = tuple(map(str, range(10)))
    assert [len(y) for _, y in InMemory(pixels, labels, names, 4, training=True).epoch()] == [4, 4]
    assert [len(y) for _, y in InMemory(pixels, labels, names, 4).epoch()] == [4, 4, 2]
    assert [len(y) for _, y in InMemory(pixels, labels, names, 64, training=True).epoch()] == [10]


def write_cifar(folder, count=20):
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {
            b"data": pixels,
            b"labels": list(range(10)) * 2,
            b"filenames": [f"{i}.png".encode() for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return pixels


def test_cifar_batches_are_read(tmp_path):
    pixels = write_cifar(tmp_path / "cifar-10-batches-py")
    data = open_data("cifar10", Options(tmp_path, train_batch=10))
    assert (len(data.train.names), len(data.val.names), len(data.test.names)) == (90, 10, 20)
    assert torch.equal(data.test.pixels[3], torch.from_numpy(pixels[3].reshape(3, 32, 32)))


class Attack:
    def __reduce__(self):
        return print, ("code from a data file ran",)


def test_a_cifar_file_with_code_in_it_is_refused(tmp_path, capsys):
    write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": Attack()}, protocol=2))
    with pytest.raises(ValueError, match="not a CIFAR batch"):
        open_data("cifar10", Options(tmp_path))
    assert "ran" not in capsys.readouterr().out


def test_cifar_as_folders(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path, split, classes=10, images=2)
    data = open_data("cifar10", Options(tmp_path))
    assert data.test.names[:3] == ("test/class0/0.png", "test/class0/1.png", "test/class1/0.png")
    expected = np.asarray(Image.open(tmp_path / "test/class0/1.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.pixels[1], expected)


def test_imagenet_folders_whatever_the_number_of_workers(tmp_path):
    for split in ("ILSVRC2012_img_train", "val"):
        write_folder(tmp_path, split, images=10, size=80)
    batches = []
    for workers in (0, 2):
        data = open_data("imagenet", Options(tmp_path, train_batch=9, workers=workers, image_size=64))
        batches.append(torch.cat([x for x, _ in data.train.epoch(1, 5)]))
    assert torch.equal(*batches)
    assert batches[0].shape == (27, 3, 64, 64)
    assert next(data.test.epoch(0, 0))[0].shape == (30, 3, 64, 64)


def test_a_folder_with_val_alone_is_enough_to_evaluate(tmp_path):
    write_folder(tmp_path, "val", size=80)
    data = open_data("imagenet", Options(tmp_path, workers=0))
    assert data.train is None
    assert data.num_classes == 3


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        open_data("mnist", Options())
    with pytest.raises(ValueError, match="needs --data_path"):
        open_data("cifar10", Options())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_data("imagenet", Options(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no images in"):
        open_data("imagenet", Options(tmp_path))
    write_folder(tmp_path, "val")
    broken = tmp_path / "val" / "class0" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"class0/0\.png cannot be read"):
        next(open_data("imagenet", Options(tmp_path, workers=0)).test.epoch(0, 0))


def test_parts_of_photographs_are_the_batch_that_one_process_has(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path, split, images=5, size=80)
    (tmp_path / "train" / "class0" / "1.png").write_bytes(b"no image")
    options = Options(tmp_path, train_batch=4, eval_batch=4, workers=0, image_size=64, bad_images="skip")
    data = open_data("imagenet", options)
    whole, *parts = (list(data.train.epoch(2, 5, Part(i, n))) for i, n in ((0, 1), (0, 2), (1, 2)))
    for (x, y), *own in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([x for x, _ in own]))
        assert torch.equal(y, torch.cat([y for _, y in own]))
    joined = torch.cat([x for i in range(2) for x, _ in data.test.epoch(0, 0, Part(i, 2))])
    assert torch.equal(joined, torch.cat([x for x, _ in data.test.epoch(0, 0)]))


class Guess(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_fatal_or_skipped_as_asked(tmp_path, capsys, workers):
    for split in ("train", "val"):
        write_folder(tmp_path, split, images=4, size=80)
        damage(tmp_path / split, "class0/1.png", "class2/3.png")
    options = dict(train_batch=3, eval_batch=4, workers=workers, image_size=64)
    with pytest.raises(ValueError, match=r"class0/1\.png cannot be read as an image.*--bad_images skip") as error:
        list(open_data("imagenet", Options(tmp_path, **options)).test.epoch(0, 0))
    assert "\n" not in str(error.value)
    data = open_data("imagenet", Options(tmp_path, bad_images="skip", **options))
    bad = {"val/class0/1.png", "val/class2/3.png"}
    for epoch in range(2):
        assert [len(y) for _, y in data.test.epoch(epoch, 0)] == [3, 4, 3]
        assert [len(y) for _, y in data.train.epoch(epoch, 0)] == [3, 3, 3]  # others take their place
        assert data.test.skipped == bad
    assert data.train.skipped
    assert data.train.skipped <= {"train/class0/1.png", "train/class2/3.png"}
    metrics = evaluate(Guess(), data.test)
    assert (metrics.images, set(metrics.skipped)) == (10, bad)
    warnings = capsys.readouterr().err.splitlines()
    assert sum("val/class0/1.png" in line for line in warnings) == 1  # once, not in every epoch
    assert all(line.startswith("warning: ") and line.endswith("skipped") for line in warnings)


def test_folders_without_any_readable_image_are_refused(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path, split, classes=1, images=3)
        damage(tmp_path / split / "class0", "0.png", "1.png", "2.png")
    data = open_data("imagenet", Options(tmp_path, train_batch=2, bad_images="skip", workers=0))
    with pytest.raises(ValueError, match="none of 3 images"):
        evaluate(Guess(), data.test)
    with pytest.raises(ValueError, match=r"20 images drawn from .* cannot be read"):
        list(data.train.epoch(0, 0))


def test_bad_images_and_dali_are_for_photographs():
    for option in (dict(dali_device="cpu"), dict(bad_images="skip")):
        with pytest.raises(ValueError, match=r"--\w+.* is for imagenet: digits is decoded before"):
            open_data("digits", Options(**option))


def test_a_run_that_skips_images_counts_them(tmp_path, capsys):
    for split in ("train", "val"):
        write_folder(tmp_path, split, images=10, size=40)
        damage(tmp_path / split, "class0/1.png", "class1/2.png")
    common = ["--data_set=imagenet", f"--data_path={tmp_path}", "--image_size=32", "--arch=resnet20", "--workers=0"]
    common += ["--method=dense", "--num_epochs=1", "--train_batch_size=9"]
    assert cli.main([*common, f"--job_dir={tmp_path / 'fatal'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert ".png cannot be read as an image" in error
    assert cli.main([*common, "--bad_images=skip", f"--job_dir={tmp_path / 'out'}"]) == 0
    out, error = capsys.readouterr()
    files = {line.split(" cannot be read")[0] for line in error.splitlines() if line.startswith("warning: ")}
    assert f"{len(files)} images could not be read and were skipped" in out + error
    assert len(files) >= 2
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predictions) == 28
    assert not {"val/class0/1.png", "val/class1/2.png"} & set(predictions)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["images_skipped"] == len(files)


def test_resizing_is_pils():
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for width, height in ((64, 64), (200, 180), (130, 64), (130, 90)):
        ours = resized(torch.from_numpy(image), width, height).numpy().astype(int)
        pils = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR), dtype=int)
        assert np.abs(ours - pils).max() <= 1


def test_crops_are_those_of_torchvision():
    from torchvision.transforms import functional

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (100, 140, 3), dtype=np.uint8))
    for seed in range(6):
        left, top, w, h, mirror = crop_box(*image.size, np.random.default_rng(seed))
        theirs = functional.resized_crop(image, top, left, h, w, [48, 48])
        theirs = np.asarray(functional.hflip(theirs) if mirror else theirs, dtype=int)
        ours = random_crop(image.copy(), 48, np.random.default_rng(seed)).numpy().astype(int)
        assert np.abs(ours - theirs).max() <= 1
    theirs = functional.center_crop(functional.resize(image, [64]), [56, 56])  # 56 * 256 / 224
    ours = centred(torch.from_numpy(np.array(image)), 56).numpy().astype(int)
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1


def test_a_large_jpeg_decoded_at_reduced_size_is_the_same_crop(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(small).resize((1600, 1200), Image.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    reduced = 0
    for seed in range(8):
        with Image.open(tmp_path / "large.jpg") as file:
            ours = random_crop(file, 64, np.random.default_rng(seed)).numpy().astype(int)
            reduced += file.size[0] < 1600
        with Image.open(tmp_path / "large.jpg") as file:
            left, top, w, h, mirror = crop_box(1600, 1200, np.random.default_rng(seed))
            whole = file.resize((64, 64), Image.BILINEAR, box=(left, top, left + w, top + h))
        whole = np.asarray(whole, dtype=int)
        assert np.abs(ours - (whole[:, ::-1] if mirror else whole)).max() <= 3
    assert reduced


def test_rows_of_channels_last_pixels_are_normalised_alike():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    x = normalise(pixels)
    assert torch.equal(x, normalise(pixels.contiguous()))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_without_dali_the_extra_to_install_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path, "val", size=80)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "kerf.compress.data.dali", raising=False)
    flags = ["--data_set=imagenet", f"--data_path={tmp_path}", "--arch=resnet20", "--num_epochs=0", "--device=cpu"]
    assert cli.main([*flags, "--use_dali", f"--job_dir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install '.[dali]'" in error
    assert not (tmp_path / "out").exists()
