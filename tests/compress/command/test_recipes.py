"""Recipes as published: what the flags become, scaled and not, and where there is none."""

import pytest

from kerf.compress.command.parsing import parse
from kerf.compress.command.planning import own_numbers, plan
from kerf.compress.methods import METHODS, published
from kerf.compress.methods.published import EPOCHS, TABLE
from kerf.compress.training.learning_rate import LearningRate
from kerf.compress.training.pressure import Plan
from tests.helpers.attaching import traced

CIFAR = ["--data_set=cifar10", "--data_path=DIR"]
GIVEN = ["--pretrained_model=FILE", "--recipe=published"]


def parsed(*flags: str):
    return parse([*CIFAR, *flags])[0]


def test_resrep_as_its_authors_run_it():
    args = parsed("--method=resrep", "--arch=resnet56", "--flops_target=0.471", *GIVEN)
    assert (args.finetune_epochs, args.lr, args.lr_policy, args.warmup_length) == (480, 0.01, "cos_step", 0)
    assert (args.train_batch_size, args.weight_decay, args.momentum, args.nesterov) == (64, 1e-4, 0.9, False)
    numbers = own_numbers(args.set, "resrep")
    assert numbers == {"start": pytest.approx(5 / 480, rel=1e-4), "lasso": 1e-4, "compactor_momentum": 0.99,
                       "mask_interval": 200}  # fmt: skip


def test_scaled_down_a_method_finds_its_own_pace():
    args = parsed("--method=csgd", *GIVEN, "--epochs_scale=0.1")
    assert (args.finetune_epochs, args.lr_decay_step, args.lr, args.nesterov) == (60, (20, 40), 0.03, True)
    assert args.set == ()  # ε of 600 epochs would not make clusters equal in 60
    assert own_numbers(parsed("--method=csgd", *GIVEN).set, "csgd") == {"strength": 3e-3}
    assert parsed("--method=csgd", *GIVEN, "--epochs_scale=0.0001").finetune_epochs == 1


def test_what_is_typed_wins():
    args = parsed("--method=rni", "--recipe=published", "--arch=vgg16", "--lr=0.05", "--set", "b=1")
    assert (args.lr, args.num_epochs, args.finetune_epochs, args.nesterov) == (0.05, 160, 160, True)
    assert own_numbers(args.set, "rni") == {"b": 1.0, "reg_weight": 1e-3}


def test_networks_have_recipes_of_their_own():
    assert own_numbers(parsed("--method=rni", "--recipe=published", "--arch=resnet56").set, "rni")["b"] == 0
    assert parsed("--method=csgd", "--arch=densenet40", *GIVEN).lr_decay_step == (200, 400, 500)


@pytest.mark.parametrize(("flags", "reason"), [
    (["--method=hrank", "--recipe=published"], "none is known of method hrank"),
    (["--method=dmcp", "--recipe=published"], "method dmcp was published on imagenet, not cifar10"),
    (["--method=resrep", "--recipe=published"], "resrep begins with a trained network"),
    (["--epochs_scale=0.5"], "give --recipe published"),
    (["--recipe=short"], "short recipe begins with a trained network; give it as --pretrained_model"),
    (["--epochs_scale=0", "--recipe=published", "--method=rni"], "expected a positive number"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(flags, reason):
    with pytest.raises(ValueError, match=reason):
        parsed(*flags)


@pytest.mark.parametrize(("name", "epochs"), [("short", 3), ("long", 12)])
def test_a_newcomer_gets_the_method_and_how_to_train_it_by_one_word(name, epochs):
    args, notes = parse([*CIFAR, "--pretrained_model=FILE", f"--recipe={name}"])
    assert (args.method, args.rearrange, args.N) == ("obs", True, 4)
    assert (args.finetune_epochs, args.lr_policy, args.distill, args.warmup_length) == (epochs, "cos_step", 0.9, 0)
    assert f"recipe {name}: --method obs --rearrange --N 4" in "\n".join(notes)
    assert plan(args, "obs", "FILE")[1].epochs == epochs


def test_what_is_typed_beside_this_projects_recipe_wins():
    args = parsed("--pretrained_model=FILE", "--recipe=long", "--epochs_scale=0.5", "--N=16", "--lr=0.1")
    assert (args.finetune_epochs, args.N, args.lr, args.method) == (6, 16, 0.1, "obs")
    args = parsed("--pretrained_model=FILE", "--recipe=short", "--method=resrep")
    assert (args.method, args.rearrange, args.N, args.finetune_epochs) == ("resrep", False, 16, 3)
    args = parsed("--pretrained_model=FILE", "--recipe=short", "--criterion=l2")
    assert (args.method, args.distill) == (None, 0.9)


def test_a_run_that_is_resumed_keeps_its_recipe(tmp_path):
    args = parsed("--method=resrep", *GIVEN, "--epochs_scale=0.1", f"--job_dir={tmp_path}")
    import json

    (tmp_path / "config.json").write_text(json.dumps(args.as_json()))
    again, _ = parse([f"--resume={tmp_path}"])
    assert {**again.as_json(), "resume": None} == {**args.as_json(), "resume": None}
    assert parse(args.command().split()[2:])[0].as_json() == args.as_json()


@pytest.mark.parametrize(("method", "data", "networks", "recipe"), TABLE)
def test_every_recipe_is_one_that_its_method_takes(method, data, networks, recipe):
    arch = {"*": "resnet50" if "imagenet" in data else "resnet56"}.get(networks, networks.replace("*", "56"))
    arch = {"mobilenet56": "mobilenet_v2"}.get(arch, arch)
    target = ["--flops_target=0.5"] if METHODS[method].target in ("macs", "either") else []
    flags = [f"--data_set={data[0]}", "--data_path=DIR", f"--method={method}", f"--arch={arch}", "--recipe=published"]
    args, notes = parse([*flags, *target, *(["--pretrained_model=FILE"] if recipe.trained else [])])
    chosen, budget = plan(args, method, args.pretrained_model)
    assert sum(phase.epochs for phase in chosen.schedule(budget)) >= 40
    assert set(own_numbers(args.set, method)) == set(recipe.numbers) | set(recipe.whole)
    assert any("as published" in note for note in notes)
    assert not recipe.differs or any(recipe.differs in note for note in notes)
    assert {name for name in EPOCHS if name in recipe.flags} >= {"warmup_length"}


@pytest.mark.parametrize(("method", "data", "epochs", "steps"), [
    ("greg1", "cifar10", 314, 45_000 // 128),
    ("greg2", "cifar10", 342, 45_000 // 128),
    ("greg1", "imagenet", 19, 1_271_167 // 256),
    ("greg2", "imagenet", 20, 1_271_167 // 256),
    ("gate_decorator", "cifar10", 300, 45_000 // 128),
])  # fmt: skip
def test_published_pressures_last_as_long_as_published_and_grow_at_their_own_pace(method, data, epochs, steps):
    """A share of the epochs is not rounded up to one more; λ grows by the authors' numbers, not by more."""
    flags = [f"--data_set={data}", "--data_path=DIR", f"--method={method}", "--arch=resnet56", *GIVEN]
    args, _ = parse([*flags, "--flops_target=0.5"])
    chosen, budget = plan(args, method, args.pretrained_model)
    (phase,) = [p for p in chosen.schedule(budget) if p.pressure]
    assert phase.epochs == epochs
    if method != "gate_decorator":
        model, graph, x = traced("resnet20")
        units = chosen.granularity.split(model, graph, x[:1])
        chosen.pressure.attach(model, graph, units, Plan(epochs * steps, lambda _: 1e-3, 0.5, each=steps))
        assert chosen.pressure.speed == 1.0
        assert chosen.pressure.interval == {"cifar10": 10, "imagenet": 5}[data]


def test_the_table_in_words():
    row = next(r for r in published.rows() if r["method"] == "csgd" and r["networks"] == "all")
    assert (row["data"], row["epochs"]) == ("cifar10, cifar100", "600 after")
    assert "--lr 0.03" in row["flags"]
    assert "--lr_decay_step 200 400" in row["flags"]
    assert "--nesterov" in row["flags"]
    assert row["--set"] == "strength (unscaled)=0.003"


def test_small_images_decay_at_100_and_150_as_documented():
    assert parsed("--lr_policy=step").lr_decay_step == (100, 150)
    assert parsed("--lr_policy=step", "--lr_adjust=30").lr_decay_step == ()
    assert parsed("--lr_policy=step", "--lr_decay_step", "7").lr_decay_step == (7,)
    assert parsed().lr_decay_step == ()
    assert parse(["--data_path=DIR", "--lr_policy=step"])[0].lr_decay_step == ()  # ImageNet: every 30
    assert parsed().eval_batch_size == 100


def test_the_gate_decorators_triangle():
    rate = LearningRate(0.01, 10, 0, "triangle")
    seen = [rate(epoch, step, 10) for epoch in range(10) for step in range(10)]
    assert max(seen) == seen[49] == pytest.approx(0.01)
    assert seen[-1] == pytest.approx(0.001)
    assert seen[0] == pytest.approx(0.001 + 0.009 / 50)
