"""kerf.prune and kerf.sensitivity, on a module of the user's own, in a loop of the user's own."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kerf
from kerf.compress.methods import METHODS
from kerf.compress.methods.one_by_n import one_by_n
from kerf.compress.network import cost
from kerf.compress.pruning.settings import Settings

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))
STEPS = 20
# methods' own numbers with which a test is quick
FEW = {name: {"images": 16} for name in ("hrank", "ezcrop", "channel_similarity", "hessian", "frs", "prunenet")}
BEYOND = ("drl", "snapshots")  # need more than a loop
AT_ONCE = [n for n, m in METHODS.items() if "training" not in m.needs and n != "dense"]
TRAINING = [n for n, m in METHODS.items() if "training" in m.needs and n not in BEYOND]
BLOCKS = [n for n, m in METHODS.items() if m.removes == "1xN blocks"]


class Net(nn.Module):
    """Of nobody's zoo: blocks in a Sequential, a depthwise layer, a residual sum, a head of its own."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int, k: int = 3, groups: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU())

        self.stem, self.wide = block(3, 8), block(8, 16)
        self.inner = nn.Sequential(block(16, 16, 1), block(16, 16, groups=16), block(16, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.stem(x))
        return self.head((x + self.inner(x)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 12, 12, generator=random), torch.randint(5, (8,), generator=random))] * count


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)


def train(pruned: kerf.Pruned, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for i in range(steps):
        loss, _ = pruned.loss(*batches()[i % 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def attach(net: nn.Module, name: str, **more) -> kerf.Pruned:
    return kerf.prune(net, name, example=X, data=batches(), steps=STEPS, rate=0.05, options=FEW.get(name), **more)


@pytest.mark.parametrize("name", AT_ONCE)
def test_methods_that_prune_at_once(net, name):
    before, dense = copy.deepcopy(net), cost.count(net, X)
    pruned = kerf.prune(net, name, example=X, data=batches(), options=FEW.get(name))
    assert pruned.model is net
    assert net.training
    assert not pruned.attached
    assert pruned.macs < 0.75 * pruned.macs_dense
    assert (pruned.macs_dense, pruned.parameters_dense) == (dense.macs, dense.params)
    assert {type(m) for m in net.modules()} == {type(m) for m in before.modules()}
    if METHODS[name].target == "layers":
        assert not pruned.widths
        assert pruned.parameters == sum(int(p.count_nonzero()) for p in net.parameters()) + zeros_of_norms(net)
        assert all(torch.equal(net.get_parameter(path) != 0, mask) for path, mask in pruned.masks.items())
    else:
        assert pruned.macs == cost.count(net, X).macs
        assert pruned.parameters == sum(p.numel() for p in net.parameters())
        assert all(before > after == len(pruned.kept[name]) for name, (before, after) in pruned.widths.items())
        assert pruned.widths
    assert name in repr(pruned)
    assert bool(net(batches()[0][0]).isfinite().all())


def zeros_of_norms(model: nn.Module) -> int:
    """Zeros that count as parameters: β as batch norms begin."""
    return sum(int((p == 0).sum()) for p in model.parameters() if p.ndim == 1)


@pytest.mark.parametrize("name", TRAINING)
def test_methods_that_train_attach_and_finish(net, name):
    plain = set(copy.deepcopy(net).state_dict())
    pruned = attach(net, name)
    assert pruned.attached
    assert "attached, step 0 of 20" in repr(pruned)
    optimizer = sgd(net)
    groups = len(optimizer.param_groups)
    with pruned.hold(optimizer):
        train(pruned, optimizer, STEPS)
        with pytest.raises(kerf.BadInput, match=f"the 20 steps that {name} was given are over: call finish"):
            optimizer.step()
        assert pruned.finish() is net
    assert not pruned.attached
    assert len(optimizer.param_groups) == groups
    assert all(group["lr"] == 0.05 for group in optimizer.param_groups)
    assert set(net.state_dict()) == plain
    assert {type(m) for m in net.modules()} == {type(m) for m in Net().modules()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert pruned.macs < 0.75 * pruned.macs_dense
    with pruned.hold(optimizer := sgd(net)):  # fine-tuning, by the same loop
        train(pruned, optimizer, 3)
    for path, mask in pruned.masks.items():
        assert not net.get_parameter(path)[~mask].any()


@pytest.mark.parametrize("name", ["dsc1", "dsc2", "while_training"])
def test_what_is_hidden_at_the_end_is_what_is_removed(net, name):
    """Masked ≡ cut: the outputs that the attached network has are those of the finished one."""
    pruned = attach(net, name)
    optimizer = sgd(net)
    with pruned.hold(optimizer):
        train(pruned, optimizer, STEPS)
        x = batches()[0][0]
        net.eval()
        with torch.no_grad():
            hidden = net(x)
            pruned.finish()
            assert torch.allclose(net(x), hidden, atol=1e-5)


@pytest.mark.parametrize("name", ["resrep", "dmcp", "c2s2", "dsc1", "movement", "frs", "slimming"])
def test_attaching_changes_no_output(net, name):
    x = batches()[0][0]
    net.eval()
    with torch.no_grad():
        plain = net(x)
        attach(net, name)
        assert torch.allclose(net(x), plain, atol=1e-6)


@pytest.mark.parametrize("name", BEYOND)
def test_what_no_loop_can_follow_names_the_command_that_can(net, name):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kerf.Unsupported, match=f"kerf prune --method {name}"):
        kerf.prune(net, name, example=X, data=batches())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())


def test_an_agent_without_bits_prunes_at_once(net):
    few = {"episodes": 3, "images": 16, "size": 1.0, "variational": "none"}
    assert kerf.prune(net, "drl", example=X, data=batches(), macs=0.6, options=few).macs <= 0.6 * 560_000


class Scaled:
    """An optimiser's step through a scaler that is off, as training scripts have it."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer, self.scaler = optimizer, torch.amp.GradScaler("cpu", enabled=False)

    def __call__(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zero_blocks_stay_zero(net, kind, held):
    pruned = kerf.prune(net, "one_by_n", example=X, n=4, rearrange=True)
    optimizer = OPTIMIZERS[kind](net.parameters())
    step = Scaled(optimizer)
    handle = pruned.hold(optimizer) if held else None
    for x, y in batches(5):
        step(F.cross_entropy(net(x), y))
    share = {n: 1 - cost.block_density(net, [f"{n}.weight"], 4) for n in pruned.zero_blocks}
    assert (share == pruned.zero_blocks) is held
    if handle is None:
        return
    states = [s for path, m in pruned.masks.items() for s in moments(optimizer, net.get_parameter(path), m)]
    assert states
    assert not any(bool(s.any()) for s in states)
    handle.remove()
    step(F.cross_entropy(net(batches()[0][0]), batches()[0][1]))
    assert any(bool(net.get_parameter(path)[~mask].any()) for path, mask in pruned.masks.items())


def moments(optimizer, weight, mask):
    return [v[~mask] for v in optimizer.state[weight].values() if v.shape == mask.shape]


def test_loops_without_hooks_call_after_step(net):
    pruned = kerf.prune(net, example=X)
    first, second = sgd(net.inner), sgd(net.wide)
    for x, y in batches(5):
        F.cross_entropy(net(x), y).backward()
        first.step()
        second.step()
        pruned.after_step()
    assert all(not bool(net.get_parameter(path)[~mask].any()) for path, mask in pruned.masks.items())


def test_masks_outlive_copies_reloading_and_other_types(net):
    pruned = kerf.prune(net, example=X)
    dense = {path: torch.ones_like(value) for path, value in net.state_dict().items()}
    again = copy.deepcopy(pruned)
    assert again.model is not net
    for one in (pruned, again):
        one.model.load_state_dict(dense)
        one.after_step()
        assert all(torch.equal(one.model.get_parameter(path) != 0, mask) for path, mask in pruned.masks.items())
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        pruned.model.to(kind).load_state_dict(dense)
        pruned.after_step()
        assert all(torch.equal(net.get_parameter(path) != 0, mask) for path, mask in pruned.masks.items())
    pruned.model.to("meta")
    pruned.after_step()  # masks go where the weights are
    assert all(mask.is_meta for mask in pruned.masks.values())


@pytest.mark.parametrize("name", ["one_by_n", "hrank", "hessian", "l1"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_weights_stays(net, kind, name):
    net.to(kind)
    weight = net.inner[0][0].weight
    pruned = kerf.prune(net, name, example=X, data=batches(), options=FEW.get(name))
    assert {t.dtype for t in net.state_dict().values() if t.is_floating_point()} == {kind}
    assert METHODS[name].target == "either" or net.inner[0][0].weight is weight
    assert pruned.macs < pruned.macs_dense


def test_numbers_say_what_is_left(net):
    pruned = kerf.prune(net, "l1", example=X, macs=0.6, round_to=4, min_width=4)
    assert pruned.macs <= 0.6 * pruned.macs_dense
    assert all(after % 4 == 0 for _, after in pruned.widths.values())
    pruned = kerf.prune(Net(), "one_by_n", example=X, sparsity=0.25, n=2)
    assert set(pruned.zero_blocks.values()) == {0.25}
    assert re.search(r"zeros in 3 layers, zero blocks 25%\)", repr(pruned))


def test_a_recipe_is_as_good_as_a_name(net):
    same = copy.deepcopy(net)
    named = kerf.prune(net, "one_by_n", example=X)
    made = kerf.prune(same, one_by_n(Settings(n=4)), example=X)
    assert all(torch.equal(mask, made.masks[path]) for path, mask in named.masks.items())
    with pytest.raises(kerf.BadInput, match="a Recipe has settings"):
        kerf.prune(net, one_by_n(Settings(n=4)), example=X, n=8)


def test_generators_are_read_as_far_as_needed(net):
    seen = []

    def endless():
        while True:
            seen.append(1)
            yield batches()[0]

    kerf.prune(net, "hrank", example=X, data=endless(), options={"images": 16})
    assert 2 <= len(seen) <= 4


def test_rates_of_the_loop_come_back_and_methods_have_their_own(net):
    pruned = attach(net, "resrep")
    optimizer = sgd(net)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
    with pruned.hold(optimizer):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        train(pruned, optimizer, 2)
        schedule.step()
        assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.025]
        own = optimizer.param_groups[1]
        assert own["weight_decay"] == 0
        assert own["scale"] == pytest.approx(0.01 / 0.05)
    assert len(optimizer.param_groups) == 1


def test_sensitivity_of_each_layer(net):
    before = copy.deepcopy(net.state_dict())
    found = kerf.sensitivity(net, "one_by_n", example=X, data=batches(), levels=(0.5, 0.9))
    assert set(found.loss) == {"wide.0.weight", "inner.0.0.weight", "inner.2.0.weight"}
    assert found.images == 32
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    with pytest.raises(kerf.BadInput, match="zero weights in place"):
        kerf.sensitivity(net, "l1", example=X, data=batches())
    with pytest.raises(kerf.BadInput, match="how many batches"):
        kerf.sensitivity(net, example=X, data=iter(batches()))


WRONG = {
    "no method odd: expected one of dense": dict(method="odd"),
    "method dense removes nothing": dict(method="dense"),
    "no number of method one_by_n; it has none": dict(options={"images": 3}),
    "images2 is no number of method hrank; it has images": dict(method="hrank", options={"images2": 3}),
    "method resrep removes MACs.*give macs": dict(method="resrep", sparsity=0.5),
    "give sparsity, not macs": dict(macs=0.5),
    "give one": dict(method="l1", macs=0.5, sparsity=0.5),
    "macs is 1.5: expected a share": dict(method="l1", macs=1.5),
    "pruning rate is 1.5": dict(sparsity=1.5),
    "method hrank looks at images: give data": dict(method="hrank"),
    "method resrep looks at images: give data": dict(method="resrep", steps=3, rate=0.1),
    "give steps and rate": dict(method="resrep", data=batches()),
    "prunes at once: leave steps and rate out": dict(steps=3, rate=0.1),
    "of the MACs cannot be reached": dict(method="l1", macs=0.001),
    r"cannot be traced on an input of shape \(1, 12, 12\)": dict(example=torch.zeros(3, 12, 12)),
    "the example is of shape": dict(example=torch.zeros(0, 3, 12, 12)),
    "the example is a tuple without tensors": dict(example=()),
    "are for networks with one input": dict(example=(X,), method="hrank", data=batches()),
    "the example is a str": dict(example="cat"),
    r"cannot be traced on an input of shape \(1, 4": dict(example=torch.zeros(1, 4, 12, 12)),
    "N is 0": dict(n=0),
    "data holds a Tensor: expected batches": dict(method="hrank", data=torch.zeros(4, 3, 12, 12)),
    "data is a int": dict(method="hrank", data=3),
    "data holds no batches": dict(method="hrank", data=[]),
    r"data holds images of shape \(8, 3, 9, 9\)": dict(
        method="hrank", data=[(torch.zeros(8, 3, 9, 9), torch.zeros(8, dtype=torch.long))]
    ),
    "the name of no layer": dict(method="l1", skip=["odd*"]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_line_and_the_network_computes_what_it_did(net, message):
    x = batches()[0][0]
    with torch.no_grad():
        before = net.eval()(x)
        with pytest.raises(kerf.BadInput, match=message) as caught:
            kerf.prune(net, **{"example": X, **WRONG[message]})
        assert "\n" not in str(caught.value)
        assert torch.equal(net(x), before)


def test_wrong_use_of_a_handle_is_one_line(net):
    pruned = attach(net, "resrep")
    with pytest.raises(kerf.Unsupported, match=r"hold a torch\.optim\.SGD, not Adam"):
        pruned.hold(torch.optim.Adam(net.parameters()))
    with pytest.raises(kerf.BadInput, match="resrep is attached"):
        pruned.after_step()
    with pytest.raises(kerf.BadInput, match=r"takes a torch\.optim\.Optimizer, not a Net"):
        pruned.hold(net)
    with pruned.hold(sgd(net)), pytest.raises(kerf.BadInput, match="it holds one already"):
        pruned.hold(sgd(net))
    handle = pruned.hold(sgd(net))
    handle.remove()
    handle.remove()
    assert pruned.holders == 0
    pruned = attach(Net(), "slimming")
    optimizer = torch.optim.Adam(pruned.model.parameters())  # which its loss alone is free to have
    with pruned.hold(optimizer), pytest.raises(kerf.BadInput, match=r"train on loss, logits = pruned\.loss"):
        optimizer.step()
    with pytest.raises(kerf.Unsupported, match="in float32"):
        attach(Net().bfloat16(), "slimming")


def test_an_optimiser_of_parameters_that_left_is_refused(net):
    optimizer = sgd(net)
    pruned = kerf.prune(net, "l1", example=X)
    with pytest.raises(kerf.BadInput, match="was made before channels were cut"):
        pruned.hold(optimizer)
    pruned.hold(sgd(net)).remove()


def test_what_linear_layers_would_have_brought_is_said():
    x = torch.randn(1, 3, 8, 8)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(288, 64), nn.Linear(64, 10))
    linear, convolutions = 288 * 64 + 64 * 10, 36 * (8 * 27 + 8 * 8)
    said = f"linear layers, {linear / (linear + convolutions):.0%} of all MACs, stay dense (full=True prunes them)"
    assert said in repr(kerf.prune(copy.deepcopy(made), "one_by_n", example=x, n=4, sparsity=0.5))
    assert "linear layers" not in repr(kerf.prune(made, "one_by_n", example=x, n=4, sparsity=0.5, full=True))
