import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from compress.batches import InMemory, crop_and_flip, generator, normalise
from compress.data import Options, open_data


def write_folder(root, split, classes=3, images=4, size=32):
    random = np.random.default_rng(len(split))
    for c in range(classes):
        folder = root / split / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(images):
            pixels = random.integers(0, 256, (size, size + 8 * (size > 32), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")


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
        open_data("cifar10", Options(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no images in"):
        open_data("imagenet", Options(tmp_path))
    write_folder(tmp_path, "val")
    broken = tmp_path / "val" / "class0" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"class0/0\.png cannot be read"):
        next(open_data("imagenet", Options(tmp_path, workers=0)).test.epoch(0, 0))
