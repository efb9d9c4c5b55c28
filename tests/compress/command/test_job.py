"""Input, read and checked: what there is to say of it, and what a run cannot start without."""

from pathlib import Path

import pytest

from kerf.compress.command.job import prepare
from kerf.compress.command.parsing import parse
from kerf.compress.models import create
from kerf.compress.training import checkpoint, distributed
from kerf.errors import BadInput
from tests.helpers.image_files import write_folder

SMALL = ["--data_set=synthetic", "--arch=resnet20", "--subset=32", "--train_batch_size=8", "--device=cpu"]


def job_of(tmp_path: Path, *flags: str):
    return prepare(parse([*SMALL, f"--job_dir={tmp_path / 'job'}", *flags])[0])


def test_rearranging_what_has_no_blocks_is_said(tmp_path):
    assert job_of(tmp_path, "--method=l1", "--rearrange").notes == (
        "--rearrange orders filters for blocks; method l1 has none, so it changes nothing",
    )
    assert job_of(tmp_path, "--N=4", "--rearrange").notes == ()
    assert not (tmp_path / "job").exists()


def test_a_new_head_is_said_where_it_is_trained_and_refused_where_it_is_not(tmp_path):
    weights = tmp_path / "ten.safetensors"
    checkpoint.save(weights, create("resnet20", 10, 32).state_dict())
    job = job_of(tmp_path, "--num_classes=3", "--N=4", f"--pretrained_model={weights}")
    (note,) = job.notes
    assert "10" in note
    assert "3" in note
    assert job.model.linear.out_features == 3
    with pytest.raises(BadInput, match="classes"):
        job_of(tmp_path, "--num_classes=3", f"--evaluate={weights}")


def test_training_needs_training_images(tmp_path):
    write_folder(tmp_path / "data", "val", images=2, size=40)
    flags = ["--data_set=imagenet", f"--data_path={tmp_path / 'data'}", "--image_size=32", "--method=dense"]
    with pytest.raises(BadInput, match="has no train folder: give --num_epochs 0, or --evaluate FILE"):
        job_of(tmp_path, *flags)
    assert job_of(tmp_path, *flags, "--num_epochs=0").data.train is None


def test_every_process_needs_an_image_of_each_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 9)
    with pytest.raises(BadInput, match="8 images in a training batch for 9 processes: expected one for each"):
        job_of(tmp_path)
