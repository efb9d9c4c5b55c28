"""Information dropout in drl: its formulas, what noise drowns, and that a run drops it and keeps it dropped."""

import math

import pytest
import torch
from torch import nn

from kerf.compress.data.sets import Options, open_data
from kerf.compress.methods import METHODS
from kerf.compress.methods.drl import information_dropout
from kerf.compress.methods.drl.bit_widths import BitWidths, Numbers
from kerf.compress.methods.drl.information_dropout import InformationDropout, divergence, snr
from kerf.compress.models import create
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.run import run
from kerf.compress.pruning.schedules import Budget
from kerf.compress.pruning.settings import Settings
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Plan
from kerf.compress.training.train import Optim, make_task
from tests.helpers.attaching import BY_MACS, traced

ALONE = {"images": 16, "episodes": 1, "size": 1.0}


def noisy(kernels: bool = False, penalty: float = 1.0) -> tuple[nn.Module, InformationDropout, torch.Tensor]:
    model, graph, x = traced("resnet20")
    noise = InformationDropout(kernels, False, penalty, 0.01)
    noise.attach(model, graph, (), Plan(10, lambda _: 0.1, 0.5, each=5))
    return model, noise, x


def set_alpha(noise: InformationDropout, path: str, alpha: torch.Tensor) -> None:
    share = (alpha - information_dropout.LEAST) / information_dropout.SPAN
    with torch.no_grad():
        noise.loudness[noise.index[path]].copy_(torch.logit(share))


def test_noise_and_divergence_by_hand():
    assert float(divergence(torch.tensor(0.351), 0.701)) == pytest.approx(0.691722, abs=1e-6)
    assert float(divergence(torch.tensor(0.701), 0.701)) == 0
    drawn = (0.5 * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.double)).exp()
    assert float(snr(torch.tensor(0.5))) == pytest.approx(float(drawn.mean() / drawn.std()), rel=0.01)
    assert float(snr(torch.tensor(0.83255))) == pytest.approx(1, abs=1e-4)
    assert float(snr(torch.tensor(0.84))) < 1 < float(snr(torch.tensor(0.82)))


@pytest.mark.parametrize("kernels", [False, True])
def test_weights_are_multiplied_by_log_normal_noise_in_training_alone(kernels):
    model, noise, x = noisy(kernels)
    path = "layer2.1.conv1.weight"
    weight = model.get_parameter(path)
    assert noise.loudness[noise.index[path]].shape == (*weight.shape[:2], *((1, 1) if kernels else weight.shape[2:]))
    assert torch.allclose(noise.alpha(path), torch.tensor(0.1))
    model.eval()
    assert noise._value(path, weight) is weight
    model.train()
    torch.manual_seed(0)
    logs = torch.stack([(noise._value(path, weight) / weight).detach().log() for _ in range(200)])
    assert abs(float(logs.mean())) < 0.01
    assert float(logs.std()) == pytest.approx(0.1, rel=0.02)
    assert float(logs.std(0).min()) > 0.05  # each is drawn anew in every step
    assert (float(logs[0].std((-1, -2)).max()) < 1e-6) == kernels  # one draw for a kernel
    first, second = model(x), model(x)
    assert not torch.equal(first, second)


def test_the_divergence_is_in_the_loss_and_makes_noise_louder():
    model, noise, x = noisy(penalty=2.0)
    y, task = torch.tensor([0, 1]), make_task(Optim(), torch.device("cpu"))
    torch.manual_seed(1)
    bare, _ = task(model, x, y)
    torch.manual_seed(1)
    loss, _ = noise.loss(model, x, y, task, 0)
    count = sum(p.numel() for p in noise.loudness)
    apart = count * -math.log(0.1 / 1.501)
    assert float((loss - bare).detach()) == pytest.approx(2.0 * apart / (5 * 2), rel=1e-4)  # N: 5 steps of 2 images
    loss.backward()
    pushed = torch.cat([p.grad.flatten() for p in noise.loudness])
    assert float((pushed < 0).double().mean()) > 0.9  # SGD makes α larger


def test_a_step_moves_loudness_by_its_own_rate():
    model, noise, x = noisy()
    group, *others = noise.parameter_groups(model)
    assert not others
    assert set(group.names) == {n for n, _ in model.named_parameters() if n.startswith("information_dropout.")}
    assert (group.scale, group.momentum, group.weight_decay) == (pytest.approx(0.1), 0.0, 0.0)
    noise.loss(model, x, torch.tensor([0, 1]), make_task(Optim(), torch.device("cpu")), 0)[0].backward()
    noise.edit_gradients(model, 0)
    first = noise.loudness[0].grad
    assert torch.allclose(first.abs(), torch.ones_like(first), atol=1e-3)  # Adam's first direction is the sign


def test_what_noise_drowns_is_zeroed_and_named():
    model, noise, _ = noisy()
    path, silent = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    alpha = torch.full_like(model.get_parameter(path), 0.1)
    alpha[0], alpha[1] = 0.84, 0.82
    set_alpha(noise, path, alpha)
    loud = torch.full_like(model.get_parameter(silent), 1.2)
    loud[3, 2, 1, 0] = 1.1
    set_alpha(noise, silent, loud)
    assert noise.report(model).startswith(f"{alpha[0].numel() + loud.numel() - 1} of ")
    noise.fold(model)
    zeros = noise.zeros()
    assert not zeros[path][0].any()
    assert zeros[path][1:].all()
    assert int(zeros[silent].sum()) == 1  # of each layer something stays
    assert bool(zeros[silent][3, 2, 1, 0])
    assert not any(n.startswith("information_dropout") for n, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * zeros.get(name, 1))
    assert not noise.attached


def test_one_alpha_for_a_kernel_drops_whole_kernels():
    model, noise, _ = noisy(kernels=True)
    path = "layer1.0.conv1.weight"
    alpha = torch.full_like(noise.alpha(path), 0.1)
    alpha[2, 3] = 1.0
    set_alpha(noise, path, alpha)
    noise.fold(model)
    gone = (model.get_parameter(path) == 0).flatten(2)
    assert gone[2, 3].all()
    assert int(gone.sum()) == 9


def trained(monkeypatch, **own) -> tuple[nn.Module, list[dict], dict]:
    data = open_data("synthetic", Options(train_batch=8, subset=32))
    torch.manual_seed(0)
    model = create("resnet20", data.num_classes, data.image_size)
    graph = DependencyGraph.trace(model, torch.zeros(1, 3, data.image_size, data.image_size))
    monkeypatch.setattr(information_dropout, "START", 0.8325)  # a step below the loudest that is heard
    outcome = run(
        model,
        METHODS["drl"](Settings(by_macs=True), **ALONE | own),
        data,
        Budget(0.4, 0, 2),
        0,
        graph=graph,
        optim=Optim(lr=LearningRate(0.01, warmup=0)),
    )
    return model, outcome.history, outcome.masks


def test_a_run_drops_what_is_drowned_and_fine_tunes_without_it(monkeypatch):
    model, history, masks = trained(monkeypatch)
    assert [row["phase"] for row in history] == ["information dropout", "fine-tune"]
    gone = sum(int((~m).sum()) for m in masks.values())
    total = sum(m.numel() for m in masks.values())
    assert 0.1 * total < gone < total
    for path, mask in masks.items():
        weight = model.get_parameter(path)
        assert not weight[~mask].any()  # an epoch of SGD later
        assert (weight[mask] != 0).all()
    without, history, masks = trained(monkeypatch, variational="none")
    assert {row["phase"] for row in history} == {"fine-tune"}
    assert not masks
    assert all((without.get_parameter(f"layer1.{i}.conv2.weight") != 0).all() for i in range(3))


def test_networks_that_bits_are_tried_on_keep_what_was_dropped():
    data = open_data("synthetic", Options(train_batch=8, subset=32))
    model = create("resnet20", data.num_classes, data.image_size).train()
    weight = model.get_parameter("layer1.0.conv1.weight")
    with torch.no_grad():
        weight[::2] = 0
    before = weight.detach().clone()
    bits = BitWidths(Numbers(episodes=1, images=8, tuned=16, size=0.1, seed=0))
    bits._train(model, lambda: data.train.epoch(0, 0))
    assert not weight[::2].any()
    assert bool((weight[1::2] != before[1::2]).any())


def test_phases_share_the_epochs():
    def of(epochs: int, **own) -> list[tuple[str, int, bool]]:
        chosen = METHODS["drl"](BY_MACS, **own)
        return [(p.name, p.epochs, p.pressure) for p in chosen.schedule(Budget(0.5, 2, epochs))]

    noise = "information dropout"
    assert of(8) == [("dense", 2, False), (noise, 3, True), ("fine-tune", 3, False), ("quantised", 2, True)]
    assert of(8, size=1.0) == [("dense", 2, False), (noise, 4, True), ("fine-tune", 4, False)]
    assert of(8, variational="none") == [("dense", 2, False), ("fine-tune", 6, False), ("quantised", 2, True)]
    assert of(8, variational="none", size=1.0) == [("dense", 2, False), ("fine-tune", 8, False)]


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="variational is 'odd': expected one of weights, kernels, none"):
        METHODS["drl"](BY_MACS, variational="odd")
    with pytest.raises(ValueError, match=r"penalty 0, noise_rate 0\.01: expected above 0"):
        METHODS["drl"](BY_MACS, penalty=0)
