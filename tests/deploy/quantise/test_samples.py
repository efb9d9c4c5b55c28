"""Calibration samples: from files of arrays and from folders of images."""

import builtins

import numpy as np
import pytest

from kerf.deploy.frontend.onnx_graph import Value
from kerf.deploy.quantise.calibration import Calibration
from kerf.deploy.quantise.samples import evenly, read
from kerf.errors import BadInput

pytestmark = pytest.mark.quick

IMAGE = Value("x", "float32", (None, 3, 8, 8))


def test_a_file_has_samples_times_the_batch_that_the_network_fixes(tmp_path):
    x, z = np.arange(24, dtype=np.float32).reshape(6, 4), np.arange(3, dtype=np.int64).reshape(3, 1)
    np.savez(tmp_path / "s.npz", x=x, z=z)
    values = [Value("x", "float32", (2, None)), Value("z", "int64", (1, 1))]
    samples = read(Calibration(tmp_path / "s.npz"), values)
    assert len(samples) == 3
    for _ in range(2):  # they can be gone through again
        feeds = list(samples)
        np.testing.assert_array_equal(feeds[1]["x"], x[2:4])
        np.testing.assert_array_equal(feeds[1]["z"], [[1]])
    np.savez(tmp_path / "s.npz", x=x, z=z[:2])
    with pytest.raises(BadInput, match="3 of 'x', 2 of 'z'; expected as many samples of each input"):
        read(Calibration(tmp_path / "s.npz"), values)
    np.savez(tmp_path / "s.npz", x=x[:5], z=z)
    with pytest.raises(BadInput, match="'x' is 5x4; expected a multiple of 2 of samples"):
        read(Calibration(tmp_path / "s.npz"), values)


def test_of_many_those_are_taken_that_lie_evenly():
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 4) == [0, 1, 2]


def write(path, pixels):
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_images_of_the_networks_size_are_taken_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    write(tmp_path / "a" / "1.png", pixels)
    write(tmp_path / ".hidden" / "2.png", pixels)
    samples = read(Calibration(tmp_path, mean=(0.5, 0.25, 0), std=(0.5, 1, 2)), [IMAGE])
    assert len(samples) == 1
    (feed,) = samples
    assert feed["x"].dtype == np.float32
    expected = (pixels / 255 - [0.5, 0.25, 0]) / [0.5, 1, 2]
    np.testing.assert_allclose(feed["x"][0], expected.transpose(2, 0, 1), atol=1e-6)


def test_other_images_are_resized_and_their_centre_taken(tmp_path):
    pixels = np.zeros((32, 64, 3))
    pixels[:, 16:48] = 255  # the centre square
    write(tmp_path / "wide.png", pixels)
    (feed,) = read(Calibration(tmp_path, mean=(0.0,) * 3, std=(1.0,) * 3), [IMAGE])
    assert feed["x"].shape == (1, 3, 8, 8)
    np.testing.assert_allclose(feed["x"], 1, atol=1e-6)


def test_a_network_of_grey_images_gets_them_grey(tmp_path):
    write(tmp_path / "1.png", np.full((8, 8, 3), 51))
    (feed,) = read(Calibration(tmp_path, mean=(0.2,), std=(1.0,)), [Value("x", "float32", (1, 1, 8, 8))])
    np.testing.assert_allclose(feed["x"], np.zeros((1, 1, 8, 8)), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value("x", "float32", (1, 3, None, None)), "leaves their size open: give --shape x=1x3x224x224"),
        (Value("x", "float32", (4, 3, 8, 8)), "input 'x' is float32 4x3x8x8, not float32 1x3xHxW"),
        (Value("x", "float32", (1, 8)), "give an .npz"),
        (Value("x", "uint8", (1, 3, 8, 8)), "input 'x' is uint8"),
    ],
)
def test_networks_that_take_no_images_are_told_so(tmp_path, value, message):
    write(tmp_path / "1.png", np.zeros((8, 8, 3)))
    with pytest.raises(BadInput) as refused:
        read(Calibration(tmp_path), [value])
    assert message in str(refused.value)


def test_images_for_two_inputs_are_refused(tmp_path):
    write(tmp_path / "1.png", np.zeros((8, 8, 3)))
    with pytest.raises(BadInput, match=r"2 inputs; give an \.npz"):
        read(Calibration(tmp_path), [IMAGE, IMAGE])


def test_files_that_are_no_images_are_named(tmp_path):
    write(tmp_path / "1.png", np.zeros((8, 8, 3)))
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"0\.png cannot be read as an image"):
        list(read(Calibration(tmp_path), [IMAGE]))


def test_pixels_of_more_bits_are_refused_by_name(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")
    image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadInput, match="pixels of mode I;16; expected 8 bits"):
        list(read(Calibration(tmp_path), [IMAGE]))


def test_without_pillow_it_is_said_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "1.png", np.zeros((8, 8, 3)))
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pillow"):
        list(read(Calibration(tmp_path), [IMAGE]))
