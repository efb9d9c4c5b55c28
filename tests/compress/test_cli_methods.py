"""The whole table of methods from the command line: a new row is tested by being there."""

import pytest

from kerf.compress import cli
from kerf.compress.methods import METHODS
from kerf.compress.pruning.settings import Settings
from kerf.compress.units.channels import Channel
from tests.helpers.attaching import AT_MOST, quickly
from tests.helpers.run_files import BRIEF, read
from tests.helpers.sweeps import sweep

# one of each way to train: at once, while training, under a pressure first, with channels cut on the way, by a search
KINDS = ("one_by_n", "soft_movement", "greg1", "dsc2", "hessian")


@pytest.mark.parametrize("name", sweep(METHODS, quick=KINDS))
def test_a_small_run_writes_what_it_did(name, tmp_path):
    narrow = isinstance(METHODS[name](Settings(by_macs=True)).granularity, Channel)
    target = "--flops_target=0.6" if narrow else "--pr_target=0.4"
    flags = [*BRIEF, f"--method={name}", target, "--num_epochs=1", "--finetune_epochs=2", "--N=4"]
    flags += quickly(name)
    assert cli.main([*flags, f"--job_dir={tmp_path}"]) == 0
    summary = read(tmp_path / "summary.json")
    assert summary["method"] == name
    if name not in ("dense", *AT_MOST):
        assert summary["macs"] < summary["macs_dense"]
    assert (tmp_path / "checkpoint" / "best.safetensors").is_file()
