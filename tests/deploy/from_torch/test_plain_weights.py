"""Modules that compute their weights export as what they compute, and are left as they were."""

import threading

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

import onnxruntime  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm  # noqa: E402

from kerf.deploy.export import export  # noqa: E402
from kerf.deploy.from_torch.plain_weights import plain_copy  # noqa: E402
from kerf.errors import Unsupported  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # weight_norm's


class Net(nn.Module):
    """One block is called twice, the two convolutions of `tied` have one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
        self.tied = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.tied[1].weight = self.tied[0].weight
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.block(self.block(F.relu(self.norm(self.stem(x)))))
        x = self.tied[1](F.relu(self.tied[0](x)))
        return self.head(x.mean((2, 3)))


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


class LowRank(nn.Module):
    """Several tensors make one, and one of them is parametrised itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        parametrize.register_parametrization(self.scale, "weight", Doubled())

    def forward(self, a, b):
        return self.scale.weight * (a @ b).view(8, 8, 1, 1)

    def right_inverse(self, w):
        u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
        return u[:, :2] * s[:2], v[:2].clone()


def pruned(net):
    prune.l1_unstructured(net.stem, "weight", 0.5)
    prune.random_unstructured(net.stem, "weight", 0.5)  # a container of two
    prune.ln_structured(net.block[1][0], "weight", 0.5, 2, 0)
    prune.random_unstructured(net.head, "bias", 2)


def pruned_and_tied(net):
    prune.l1_unstructured(net.tied[0], "weight", 0.5)  # the other one keeps the whole weight


def pruned_and_trained_on(net):
    prune.l1_unstructured(net.stem, "weight", 0.5)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    net.stem.weight_orig.data += 1  # the attribute is stale now


def unhooked(net):
    """A weight that is left as an attribute, with a history."""
    prune.l1_unstructured(net.stem, "weight", 0.5)
    net.stem._forward_pre_hooks.clear()
    net.norm.kept = {"outputs": [net.stem.weight * 2]}


def weight_normed(net):
    weight_norm(net.stem)
    weight_norm(net.head, dim=None)
    prune.l1_unstructured(net.stem, "weight_v", 0.3)


def spectrally_normed(net):
    spectral_norm(net.block[0])
    net.train()(torch.randn(2, 3, 8, 8))  # a step of the power iteration


def parametrised(net):
    parametrizations.weight_norm(net.stem)
    parametrizations.spectral_norm(net.block[0])
    parametrizations.orthogonal(net.head)
    parametrize.register_parametrization(net.norm, "bias", Doubled())
    parametrize.register_parametrization(net.norm, "running_mean", Doubled())


def parametrised_twice_and_tied(net):
    parametrize.register_parametrization(net.tied[0], "weight", Doubled())
    parametrize.register_parametrization(net.tied[0], "weight", Doubled())
    net.tied[1].weight = net.tied[0].parametrizations.weight.original


def parametrised_by_something_parametrised(net):
    parametrize.register_parametrization(net.block[1][0], "weight", LowRank())


KINDS = [pruned, pruned_and_tied, pruned_and_trained_on, unhooked, weight_normed, spectrally_normed, parametrised]
KINDS += [parametrised_twice_and_tied, parametrised_by_something_parametrised]
KINDS += [lambda net: (pruned(net), parametrizations.weight_norm(net.block[0]), spectral_norm(net.tied[0]))]


def state(net):
    """Names, hooks and classes of all that a module is."""
    hooks = [(path, list(m._forward_pre_hooks.values())) for path, m in net.named_modules()]
    return list(net.state_dict()), hooks, [type(m) for m in net.modules()], [m.training for m in net.modules()]


@pytest.mark.parametrize("change", KINDS, ids=lambda f: f.__name__.strip("<>"))
def test_computed_weights_become_parameters_of_a_copy(change):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 8, 8)
    change(net)
    before, values = state(net), {name: value.clone() for name, value in net.state_dict().items()}
    plain = plain_copy(net)
    assert state(net) == before
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    spare = {"stem.weight_orig", "stem.weight_mask"} if change is unhooked else set()  # nobody says what they are for
    assert plain.state_dict().keys() - spare == Net().state_dict().keys()
    assert not any(p.requires_grad for p in plain.parameters())
    assert not any(m._forward_pre_hooks or parametrize.is_parametrized(m) for m in plain.modules())
    with torch.no_grad():
        assert torch.allclose(plain(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    assert not plain.training


def together(net):
    pruned(net)
    weight_norm(net.tied[1])
    parametrizations.spectral_norm(net.block[0])
    parametrizations.orthogonal(net.head)


def test_the_file_computes_what_the_module_does(tmp_path):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 8, 8)
    together(net)
    before = state(net)
    path = export(net, x, tmp_path / "m.onnx")
    assert state(net) == before
    assert net.training
    (found,) = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})
    assert np.allclose(found, net.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    graph = onnx.load(path).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    (weight,) = (stored[n.input[1]] for n in graph.node if n.name == "stem")
    assert np.array_equal(weight != 0, net.stem.weight_mask.numpy() != 0)


def test_wrappers_are_taken_off():
    net = Net()
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert type(plain_copy(wrapped)) is Net


def test_what_cannot_be_copied_is_refused_in_one_line():
    net = Net()
    net.lock = threading.Lock()
    with pytest.raises(Unsupported, match=r"Net cannot be copied \(cannot pickle '_thread.lock' object\), and export"):
        plain_copy(net)
    with pytest.raises(Unsupported, match="is a TorchScript program"):
        plain_copy(torch.jit.script(nn.ReLU()))
