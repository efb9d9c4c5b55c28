from dataclasses import replace

import pytest
import torch
from torch import nn

from kerf.compress.network.graph import DependencyGraph
from kerf.compress.second_order.compensation import cheapest, compensate
from kerf.compress.second_order.layer import Layer, Window
from kerf.compress.second_order.refit import Fit, Moments
from kerf.compress.second_order.traced import BATCH, Traced, batched
from kerf.compress.second_order.walk import walk
from kerf.errors import BadInput

pytestmark = pytest.mark.quick


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        return self.head((self.mix(torch.relu(self.deep(y)) + y)).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_mean.normal_()
    return model


def fit(x: torch.Tensor, t: torch.Tensor) -> Fit:
    """Of (samples, d) and (samples, O)."""
    xc, tc = x - x.mean(0), t - t.mean(0)
    return Fit(
        (xc.T @ xc / len(x))[None], (tc.T @ xc / len(x))[None], x.mean(0)[None], t.mean(0)[None],
        tc.square().mean(0)[None], len(x),
    )  # fmt: skip


def test_refit_is_the_least_squares_optimum_with_its_bias():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.double) + 1
    t = x @ torch.randn(6, 3, generator=generator, dtype=torch.double) + 0.1 * x.square()[:, :3]
    keep = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1]]).bool()
    found = fit(x, t)
    weight = found.solve(torch.zeros(3, 6), 1e-12, keep)
    constant = found.constant(weight)
    for o, s in enumerate(keep):
        given = torch.cat([x[:, s], torch.ones(4000, 1, dtype=torch.double)], 1)
        expected = torch.linalg.lstsq(given, t[:, o : o + 1]).solution[:, 0]
        torch.testing.assert_close(torch.cat([weight[o, s], constant[o : o + 1]]), expected, rtol=1e-6, atol=1e-8)
        assert float(found.error(weight)[o]) == pytest.approx(float((given @ expected - t[:, o]).square().mean()))
    assert not bool(weight[~keep].any())


def test_each_group_is_fitted_by_itself():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 400, 5, generator=generator, dtype=torch.double)
    t = torch.randn(2, 400, 4, generator=generator, dtype=torch.double)
    parts = [fit(own, aim) for own, aim in zip(x, t)]
    names = ("gram", "cross", "mean", "target", "variance")
    whole = Fit(*(torch.cat([getattr(part, name) for part in parts]) for name in names), 400)
    weight = torch.randn(8, 5, generator=generator)
    keep = torch.rand(8, 5, generator=generator) > 0.4
    alone = [p.solve(w, 0.01, k) for p, w, k in zip(parts, weight.chunk(2), keep.chunk(2))]
    torch.testing.assert_close(whole.solve(weight, 0.01, keep), torch.cat(alone))
    layer = Layer("grouped", "x", "y", weight, None, groups=2)
    half = [replace(layer, weight=w, groups=1) for w in weight.chunk(2)]
    apart = [cheapest(own, part, 2, 0.5, 0.01, multiple=1) for own, part in zip(half, parts)]
    assert torch.equal(cheapest(layer, whole, 2, 0.5, 0.01, multiple=1), torch.cat(apart))
    assert int(cheapest(layer, whole, 2, 0.5, 0.01).sum()) == 20  # of all blocks of the layer, at any place


def test_damping_holds_weights_that_nothing_is_known_of():
    x = torch.randn(500, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0  # a dead input
    found, weight = fit(x, x[:, :1] * 2), torch.tensor([[2.0, 0.0, 7.0]])
    torch.testing.assert_close(found.solve(weight, 0.01), weight.double())


def test_restored_filters_lie_halfway_between_what_is_left_and_what_there_was():
    x = torch.randn(500, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = fit(x, x.sum(1, keepdim=True))
    weight = found.solve(torch.ones(1, 2), 1e-9, torch.tensor([[True, False]]))
    spread, whole = found.spread(weight), found.variance.flatten().sqrt()
    torch.testing.assert_close(found.spread(found.restored(weight)), (spread * whole).sqrt())
    assert not bool(found.restored(torch.zeros(1, 2, dtype=torch.double)).any())


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    (3, 1, 1, 1, 1), ((3, 2), (2, 1), (0, 1), 1, 1), (3, 1, 2, 2, 2), (1, 2, 0, 1, 1), (5, 1, 2, 1, 6),
])  # fmt: skip
def test_patches_times_weights_are_the_convolution(kernel, stride, padding, dilation, groups):
    conv = nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups, bias=False)
    window = Window(conv.kernel_size, conv.stride, conv.dilation, tuple((p, p) for p in conv.padding))
    layer = Layer("w", "x", "y", conv.weight.detach().flatten(1), window, groups)
    x = torch.randn(2, 6, 9, 8)
    y = conv(x).detach()
    for lines in (None, torch.tensor([0, y.shape[2] - 1])):
        patches = layer.inputs(x, lines)
        made = layer.weight.view(groups, -1, patches.shape[1]) @ patches
        torch.testing.assert_close(made.flatten(0, 1), layer.outputs(y, lines), rtol=1e-4, atol=1e-5)


def test_one_dimensional_and_linear_layers_see_theirs_too():
    conv, x = nn.Conv1d(4, 6, 3, 2, 1, bias=False), torch.randn(3, 4, 11)
    layer = Layer("w", "x", "y", conv.weight.detach().flatten(1), Window((3,), (2,), (1,), ((1, 1),)))
    torch.testing.assert_close((layer.weight @ layer.inputs(x)[0]), layer.outputs(conv(x).detach()))
    linear, x = nn.Linear(5, 7, bias=False), torch.randn(2, 3, 5)
    layer = Layer("w", "x", "y", linear.weight.detach(), None)
    lines = torch.tensor([1, 4])
    torch.testing.assert_close(layer.weight @ layer.inputs(x, lines)[0], layer.outputs(linear(x).detach(), lines))


def test_every_layer_is_seen_as_the_two_networks_compute_it():
    model, images = net(), torch.randn(8, 3, 16, 16)
    program = Traced(model, DependencyGraph.trace(model, images[:1]), images[:4])
    dense = net()
    seen: list[str] = []

    def visit(layer: Layer, found: Fit) -> None:
        weight = model.get_parameter(layer.name).detach()
        if layer.name == "stem.weight":
            torch.testing.assert_close(found.error(weight), torch.zeros(8).double(), rtol=0, atol=1e-5)
            program.write(layer, weight.flatten(1) * 0.5, torch.ones(8))
        if layer.name == "mix.weight":
            before, now = (hooked_input(m, m.mix, images) for m in (dense, model))
            torch.testing.assert_close(found.mean[0].float(), now.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            target = dense.mix(before).detach().transpose(0, 1).flatten(1)
            torch.testing.assert_close(found.target[0].float(), target.mean(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.variance[0].float(), target.var(1, unbiased=False), rtol=1e-4, atol=1e-5)
        seen.append(layer.name)

    (first, second) = walk(program, list(images.split(4)), visit)
    assert seen == ["stem.weight", "deep.weight", "mix.weight", "head.weight"]
    answers = [pair for values in (first, second) for name, pair in values.items() if name]
    torch.testing.assert_close(torch.cat([a for a, _ in answers]), dense(images).detach())
    torch.testing.assert_close(torch.cat([b for _, b in answers]), model(images).detach())


def hooked_input(model: nn.Module, layer: nn.Module, images: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    model(images)
    handle.remove()
    return found[0]


def test_nothing_changes_where_nothing_goes():
    model, images = net(), torch.randn(64, 3, 16, 16)
    before = model(images).detach()
    program = Traced(model, DependencyGraph.trace(model, images[:1]), images)
    assert compensate(program, [images], 64, lambda *_: None, 0.01).lost == {}
    assert torch.equal(model(images).detach(), before)


def test_few_images_are_told_with_how_many_are_wanted():
    model, images = net(), torch.randn(3, 3, 4, 4)
    program = Traced(model, DependencyGraph.trace(model, images[:1]), images)
    keep = {"mix.weight": torch.arange(96).view(12, 8) % 2 == 0}
    made = compensate(program, [images], 3, lambda layer, _: keep.get(layer.name), 0.01)
    assert "3 calibration images are few for 1 layers (mix.weight wants 8)" in made.note  # 4 positions each, 4·8 wanted
    assert 0 < made.lost["mix.weight"] < 1


def test_images_that_are_no_numbers_are_refused():
    model, images = net(), torch.randn(2, 3, 8, 8)
    program = Traced(model, DependencyGraph.trace(model, images[:1]), images)
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"stem\.weight: NaN or infinity"):
        compensate(program, [images], 2, lambda *_: None, 0.01)


def test_batches_are_of_one_size_and_hold_every_image():
    images = torch.arange(2 * BATCH + 3).float().view(-1, 1, 1, 1)
    parts = batched(images)
    assert len({len(part) for part in parts}) == 1
    torch.testing.assert_close(torch.cat(parts)[: len(images)], images)
    assert [len(part) for part in batched(images[:5])] == [5]


def folds(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, tuple[Moments, ...]]:
    """Weights that answer x, as good as another, where x is alike within a fold; and the sums of the folds."""
    generator = torch.Generator().manual_seed(3)
    made = []
    truth = torch.randn(8, 40, generator=generator, dtype=torch.double)
    for _ in range(4):
        few = torch.randn(count, 40, generator=generator, dtype=torch.double)
        x = few.repeat_interleave(200 // count, 0) + 0.01 * torch.randn(200, 40, generator=generator).double()
        own = torch.randn(count, 8, generator=generator, dtype=torch.double).repeat_interleave(200 // count, 0)
        t = x @ truth.T + noise * own
        made.append(
            Moments((x.T @ x)[None], (t.T @ x)[None], x.sum(0)[None], t.sum(0)[None], t.square().sum(0)[None], 200)
        )
    return truth, torch.zeros_like(truth), tuple(made)


def test_damping_is_chosen_on_images_that_were_not_fitted():
    truth, wrong, alike = folds(10, noise=20.0)
    thin = sum(alike[1:], start=alike[0]).fit(alike)
    keep = torch.ones(8, 40, dtype=torch.bool)
    assert thin.chosen(truth, 0.01, keep) == 1.0  # what there is to learn is noise
    assert thin.chosen(truth, 0.01) == 1.0
    truth, wrong, apart = folds(200, noise=0.0)
    rich = sum(apart[1:], start=apart[0]).fit(apart)
    assert rich.chosen(wrong, 0.01, keep) == 0.01
    assert sum(apart[1:], start=apart[0]).fit().chosen(wrong, 0.5) == 0.5  # nothing to choose by


def test_sums_of_parts_make_the_fit_of_all():
    _, _, parts = folds(10, noise=1.0)
    whole = sum(parts[1:], start=parts[0])
    rest = (whole - parts[0]).fit()
    direct = sum(parts[2:], start=parts[1]).fit()
    torch.testing.assert_close(rest.gram, direct.gram)
    torch.testing.assert_close(rest.variance, direct.variance)
    assert rest.samples == direct.samples == 600
