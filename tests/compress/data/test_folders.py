"""Folders as people have them: hidden ones, deep ones, empty ones, other files, names that differ."""

import numpy as np
import pytest
from PIL import Image

from kerf.compress.data.folders import check_alike, list_folder
from kerf.compress.data.sets import Options, open_data
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            for i in range(3):
                picture(tmp_path / split / name / f"{i}.png")
    return tmp_path


def opened(root):
    return open_data("imagenet", Options(root, image_size=32))


def test_hidden_folders_and_files_are_passed_over_in_silence(root):
    for split in ("train", "val"):
        picture(root / split / ".ipynb_checkpoints" / "0-checkpoint.png")
        picture(root / split / "__MACOSX" / "ant" / "0.png")
        (root / split / ".DS_Store").touch()
    picture(root / "train" / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (root / "train" / "ant" / "._0.png").touch()
    (root / "train" / "bee" / "Thumbs.db").touch()
    data = opened(root)
    assert (data.num_classes, data.notes, len(data.test.names)) == (3, (), 9)
    assert len(data.train.names) + len(data.val.names) == 9


def test_images_that_lie_deeper_are_of_their_class(root):
    picture(root / "train" / "dog" / "a" / "b" / "0.png")
    picture(root / "val" / "dog" / "0.png")
    listing = list_folder(root, "train")
    assert listing.names[-1] == "train/dog/a/b/0.png"
    assert listing.labels[-1] == 3
    assert opened(root).num_classes == 4


def test_an_empty_class_folder_is_no_class_and_is_named(root):
    for split in ("train", "val"):
        (root / split / "dog" / ".ipynb_checkpoints").mkdir(parents=True)
    data = opened(root)
    assert data.num_classes == 3
    assert data.notes == (
        "train: 1 class folder (dog) without an image left out",
        "val: 1 class folder (dog) without an image left out",
    )


def test_files_that_are_left_out_are_counted_and_named(root):
    for name in ("notes.txt", "a.heic", "b.heic", "c.heic"):
        (root / "train" / "ant" / name).touch()
    (root / "val" / "labels.csv").touch()
    picture(root / "val" / "loose.png")
    read = "those of images are .bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp"
    assert opened(root).notes == (
        f"train: 4 files (ant/a.heic, ant/b.heic, ant/c.heic, …) of other suffixes left out; {read}",
        "val: 1 image (loose.png) in no class folder left out",
        f"val: 1 file (labels.csv) of other suffixes left out; {read}",
    )


def test_a_name_that_cannot_be_printed_stays_on_one_line(root):
    (root / "train" / "ant" / "two\nlines.txt").touch()
    (note,) = list_folder(root, "train").notes
    assert r"1 file ('ant/two\nlines.txt') of other" in note


def test_suffixes_that_people_have(root):
    for suffix in ("JPG", "jpeg", "bmp", "tif", "TIFF", "webp", "ppm", "pgm"):
        picture(root / "train" / "ant" / f"other.{suffix}")
    listing = list_folder(root, "train")
    assert sum("other" in name for name in listing.names) == 8
    assert listing.notes == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: (r / "val/cat").rename(r / "val/Cat"),
            "only train has cat; only val has Cat; cat and Cat differ in",
        ),
        (
            lambda r: (r / "val/cat").rename(r / "val/cat "),
            "only val has 'cat '; cat and 'cat ' differ in spaces alone",
        ),
        (
            lambda r: (picture(r / "train/caf\u00e9/0.png"), picture(r / "val/cafe\u0301/0.png")),
            "differ in the encoding of accents alone",
        ),
        (lambda r: (r / "val/cat").rename(r / "elsewhere"), "only train has cat; rename"),
        (lambda r: picture(r / "val/dog/0.png"), "only val has dog; rename"),
        (
            lambda r: (picture(r / "val/dog/0.png"), (r / "train/dog").mkdir()),
            "only val has dog; train has no images in dog; rename",
        ),
    ],
    ids=["case", "spaces", "accents", "lacking", "unknown", "empty in train"],
)
def test_folders_that_differ_are_named(root, change, said):
    change(root)
    with pytest.raises(BadInput, match="the class folders of train and val differ") as error:
        opened(root)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_many_folders_that_differ_are_not_all_named(tmp_path):
    for i in range(50):
        picture(tmp_path / "train" / f"n{i:02}" / "0.png")
    picture(tmp_path / "val" / "n00" / "0.png")
    with pytest.raises(BadInput, match=r"only train has n01, n02, n03, …;"):
        check_alike(list_folder(tmp_path, "train"), list_folder(tmp_path, "val"), "train", "val")


def test_a_class_without_images_to_evaluate_keeps_its_output(root):
    for file in (root / "val" / "ant").iterdir():
        file.unlink()
    data = opened(root)
    assert data.num_classes == 3
    assert data.notes == ("val: no images of ant",)
    assert sorted(set(data.test.listing.labels)) == [1, 2]


def test_an_empty_folder_of_val_alone_keeps_its_output(root):
    """Labels go on meaning what they meant in training, whose folders are not at hand."""
    (root / "train").rename(root / "elsewhere")
    (root / "val" / "aardvark").mkdir()
    data = opened(root)
    assert data.num_classes == 4
    assert sorted(set(data.test.listing.labels)) == [1, 2, 3]
    assert data.notes == ("val: no images of aardvark; with no train folder, every folder of val counts as a class",)


def test_a_split_that_is_not_there_or_has_no_class_folders_says_what_is(tmp_path):
    picture(tmp_path / "Val" / "ant" / "0.png")
    with pytest.raises(BadInput, match=r"no images in .*there is no such folder, but Val$"):
        opened(tmp_path)
    picture(tmp_path / "val" / "0.png")
    with pytest.raises(BadInput, match=r"no images in .*1 image \(0.png\) in it without a class folder$"):
        opened(tmp_path)


def test_only_other_files_is_an_error_that_names_them(tmp_path):
    (tmp_path / "val" / "ant").mkdir(parents=True)
    (tmp_path / "val" / "ant" / "a.heic").touch()
    with pytest.raises(BadInput, match=r"no images in .*val/<class>/\*.jpg; it holds 1 other file \(ant/a.heic\)"):
        opened(tmp_path)


def test_links_are_followed_and_loops_are_not(root):
    (root / "train" / "ant" / "loop").symlink_to(root / "train" / "ant")
    (root / "train" / "ant" / "up").symlink_to(root / "train")  # else bees and cats were ants
    (root / "train" / "bee" / "top").symlink_to(root)
    (root / "train" / "cat" / "gone").symlink_to(root / "nowhere")
    (root / "train" / "cat" / "itself").symlink_to(root / "train" / "cat" / "itself")
    picture(root / "elsewhere" / "0.png")
    (root / "train" / "dog").symlink_to(root / "elsewhere")
    picture(root / "val" / "dog" / "0.png")
    listing = list_folder(root, "train")
    assert listing.names.count("train/dog/0.png") == 1
    assert len(listing.names) == 10
    assert [listing.labels.count(label) for label in range(4)] == [3, 3, 3, 1]


def test_cifar_folders_with_hidden_ones(tmp_path):
    for split in ("train", "test"):
        for c in range(10):
            for i in range(2):
                picture(tmp_path / split / f"class{c}" / f"{i}.png")
        picture(tmp_path / split / ".ipynb_checkpoints" / "0.png")
    assert open_data("cifar10", Options(tmp_path)).num_classes == 10
    (tmp_path / "test" / "class3").rename(tmp_path / "test" / "Class3")
    with pytest.raises(BadInput, match="class3 and Class3 differ in case"):
        open_data("cifar10", Options(tmp_path))
