import pytest
import torch
from torch import nn

from kerf.compress.compat import rni
from kerf.compress.compat.rni import Kept, prune_finetune, set_dataset_path, train
from kerf.compress.data.sets import Options, open_data
from kerf.compress.training.train import evaluate
from tests.helpers.image_files import write_folder
from tests.helpers.sweeps import sweep

SMALL = {"epochs": 2, "batch_size": 16, "device": "cpu"}


@pytest.fixture(autouse=True)
def no_paths(monkeypatch):
    monkeypatch.setattr(rni, "_paths", {})


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, "train", classes=10, images=4)
    write_folder(tmp_path, "test", classes=10, images=2)
    set_dataset_path("cifar10", tmp_path)
    return tmp_path


def inner_widths(model):
    return [m.conv1.out_channels for m in model.modules() if hasattr(m, "conv2")]


@pytest.mark.parametrize("method", sweep(("rni", "l1", "ucs"), quick=("rni",)))
def test_train_then_prune(folder, method):
    model, logs = train(arch="resnet20", method=method, **SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    narrow, pruned_logs = prune_finetune(model, method=method, prune_pc=0.5, **SMALL)

    x = torch.randn(2, 3, 32, 32)
    data = open_data("cifar10", Options(path=folder))
    for network, log in ((model, logs), (narrow, pruned_logs)):
        assert network(x).shape == (2, 10)
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {type(m) for m in norms} == {nn.BatchNorm2d}
        if method == "rni":
            assert all(((m.weight > 0) & (m.weight < 1)).all() and not m.bias.any() for m in norms)
        assert set(log) == {"test_acc", "val_acc", "best_epoch"}
        assert len(log["test_acc"]) == len(log["val_acc"]) == 2
        assert all(0 <= share <= 1 for share in log["test_acc"] + log["val_acc"])
        # what came back is the epoch that the validation images chose
        assert log["val_acc"][log["best_epoch"]] == max(log["val_acc"])
        assert evaluate(network, data.test).top1 / 100 == pytest.approx(log["test_acc"][log["best_epoch"]])

    full = [16] * 3 + [32] * 3 + [64] * 3
    assert inner_widths(model) == full
    assert sum(inner_widths(narrow)) == sum(full) // 2
    assert min(inner_widths(narrow)) >= 3
    if method == "ucs":
        assert inner_widths(narrow) == [width // 2 for width in full]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_was_left_out_of_the_folders_is_said(folder, capsys):
    (folder / "train" / "class0" / "labels.csv").touch()
    train(arch="resnet20", **{**SMALL, "epochs": 1})
    assert "train: 1 file (class0/labels.csv) of other suffixes left out" in capsys.readouterr().out


def test_the_least_important_channels_of_all_layers_go(folder):
    model, _ = train(arch="resnet20", **{**SMALL, "epochs": 1})
    blocks = [m for m in model.modules() if hasattr(m, "conv2")]
    with torch.no_grad():
        for block in blocks:
            block.bn1.weight.fill_(0.9)
        blocks[-1].bn1.weight[8:] = 0.001
    narrow, _ = prune_finetune(model, prune_pc=56 / 336, **{**SMALL, "epochs": 1})
    assert inner_widths(narrow) == [16] * 3 + [32] * 3 + [64] * 2 + [8]


def test_a_network_depends_on_the_seed_alone(folder):
    runs = []
    for seed in (0, 0, 1):
        torch.rand(seed + len(runs))  # whatever was drawn before
        model, logs = train(arch="resnet20", seed=seed, **{**SMALL, "epochs": 1})
        runs.append((model.conv1.weight, logs["test_acc"]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize(("method", "shrinks"), [("rni", True), ("l1", True), ("ucs", False)])
def test_only_training_is_penalised(folder, method, shrinks):
    def mean_scale(model):
        return torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]).mean().item()

    free, pressed = (
        train(arch="resnet20", method=method, reg_weight=weight, b=0, **{**SMALL, "epochs": 1})[0]
        for weight in (0.0, 0.3)
    )
    assert mean_scale(free) == pytest.approx(0.5, abs=0.05)
    assert (mean_scale(pressed) < mean_scale(free) - 0.02) == shrinks
    tuned, _ = prune_finetune(pressed, method=method, prune_pc=0, **{**SMALL, "epochs": 1})
    assert mean_scale(tuned) == pytest.approx(mean_scale(pressed), abs=0.02)


def test_the_sigmoid_comes_back_without_changing_the_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1e-9, 1e-3, 0.5, 0.999, 1.0]))
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    Kept().attach(model, None, (), None)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert model[1].weight.isfinite().all()


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("vgg16", [7, 7, 13, 13, 26, 26, 26] + [52] * 6),
        ("resnet20", [16] + [3, 16] * 3 + [4, 32] * 3 + [7, 64] * 3),  # 3 stay where a tenth would be 2
    ],
)
def test_ucs_takes_a_share_of_every_layer(folder, arch, expected):
    model, _ = train(arch=arch, method="ucs", **{**SMALL, "epochs": 1})
    narrow, _ = prune_finetune(model, method="ucs", prune_pc=0.9, **{**SMALL, "epochs": 1})
    assert [m.out_channels for m in narrow.modules() if isinstance(m, nn.Conv2d)] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "mnist"}, "unknown data set 'mnist': expected one of cifar10, cifar100"),
        ({"arch": "vgg19"}, "unknown architecture 'vgg19': expected one of .*resnet56"),
        ({"method": "slimming"}, "unknown method 'slimming': expected one of rni, l1, ucs"),
        ({"dataset": "cifar100"}, r'set_dataset_path\("cifar100", folder\)'),
        ({"epochs": 0}, "0 epochs"),
        ({"lr": 0.0}, "learning rate 0.0"),
        ({"device": "cuda:99"}, 'no device cuda:99 here .*: pass device="cpu"'),
    ],
)
def test_unusable_input_is_one_clear_line(folder, given, message):
    with pytest.raises(ValueError, match=message):
        train(**{**SMALL, "arch": "resnet20", **given})


def test_a_path_has_to_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        set_dataset_path("cifar10", tmp_path / "absent")
    with pytest.raises(ValueError, match="unknown data set"):
        set_dataset_path("imagenet", tmp_path)


def test_a_model_that_does_not_fit_is_refused(folder):
    plain = rni.create("resnet20", 10, 32)
    with pytest.raises(ValueError, match='a model from train\\(method="rni"\\)'):
        prune_finetune(plain, **SMALL)
    with pytest.raises(ValueError, match="pruning rate is 50"):
        prune_finetune(plain, method="ucs", prune_pc=50, **SMALL)
    with pytest.raises(ValueError, match="the model has 100 classes, cifar10 has 10"):
        prune_finetune(rni.create("resnet20", 100, 32), method="l1", **SMALL)
