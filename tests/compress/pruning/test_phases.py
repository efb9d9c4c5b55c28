"""Phases of every schedule, number by number, and what a budget refuses."""

from functools import partial

import pytest

from kerf.compress.pruning import schedules
from kerf.compress.pruning.schedules import Budget

pytestmark = pytest.mark.quick

# what comes of 5 epochs of dense training (or trained weights, 0), 7 of pruning, half of which goes:
# epochs, sparsity, pressure
SCHEDULES = {
    "one_shot": (
        schedules.one_shot,
        [(5, 0.0, False), (7, 0.5, False)],
        [(0, 0.0, False), (7, 0.5, False)],
    ),
    "press_then_prune": (
        schedules.press_then_prune,
        [(5, 0.0, True), (7, 0.5, False)],
        [(0, 0.0, False), (3, 0.0, True), (4, 0.5, False)],
    ),
    "press_trained": (
        schedules.press_trained,
        [(5, 0.0, False), (4, 0.0, True), (3, 0.5, False)],
        [(0, 0.0, False), (4, 0.0, True), (3, 0.5, False)],
    ),
    "press_trained, one epoch": (
        partial(schedules.press_trained, most=1),
        [(5, 0.0, False), (1, 0.0, True), (6, 0.5, False)],
        [(0, 0.0, False), (1, 0.0, True), (6, 0.5, False)],
    ),
    "press_trained, more than there are": (
        partial(schedules.press_trained, most=9),
        [(5, 0.0, False), (7, 0.0, True), (0, 0.5, False)],
        [(0, 0.0, False), (7, 0.0, True), (0, 0.5, False)],
    ),
    "press_trained, two sevenths": (
        partial(schedules.press_trained, share=2 / 7),
        [(5, 0.0, False), (2, 0.0, True), (5, 0.5, False)],
        [(0, 0.0, False), (2, 0.0, True), (5, 0.5, False)],
    ),
    "prune_while_training": (
        schedules.prune_while_training,
        [(5, 0.0, False), (7, 0.0, True), (0, 0.5, False)],
        [(0, 0.0, False), (7, 0.0, True), (0, 0.5, False)],
    ),
    "within_training": (
        schedules.within_training,
        [(0, 0.0, False), (12, 0.0, True), (0, 0.5, False)],
        [(0, 0.0, False), (7, 0.0, True), (0, 0.5, False)],
    ),
    "narrow_first": (
        schedules.narrow_first,
        [(0, 0.0, False), (12, 0.5, False)],
        [(0, 0.0, False), (7, 0.5, False)],
    ),
    "unpruned": (schedules.unpruned, [(5, 0.0, False)], [(0, 0.0, False), (7, 0.0, False)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_phases(name):
    schedule, scratch, given = SCHEDULES[name]
    for dense, wanted in ((5, scratch), (0, given)):
        found = list(schedule(Budget(0.5, dense, 7)))
        assert [(p.epochs, p.sparsity, p.pressure) for p in found] == wanted
        assert not any(p.guarded or p.snapshot or p.lessons for p in found)
        assert all(p.part == 1.0 and p.rate is None for p in found)


def test_steps_share_the_epochs():
    found = list(schedules.one_shot(Budget(0.6, 2, 7, steps=3)))
    assert [(p.epochs, round(p.sparsity, 9)) for p in found] == [(2, 0.0), (2, 0.2), (2, 0.4), (3, 0.6)]
    assert [p.name for p in found] == ["dense", "fine-tune, step 1 of 3", "fine-tune, step 2 of 3", "fine-tune"]


def test_turns_open_layer_after_layer():
    found = list(schedules.layer_by_layer(Budget(0.6, 2, 7), 3))
    assert [(p.epochs, p.sparsity) for p in found] == [(2, 0.0), (2, 0.6), (2, 0.6), (3, 0.6)]
    assert [p.part for p in found[1:]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [p.name for p in found[1:]] == [f"fine-tune, turn {turn} of 3" for turn in (1, 2, 3)]


def test_rates_of_their_own():
    (_, pressed, _) = schedules.press_trained(Budget(0.5, 5, 8), rate=0.02, guarded=True)
    assert (pressed.rate.base, pressed.rate.policy, pressed.rate.warmup) == (0.02, "fixed", 0)
    assert [p.guarded for p in schedules.press_trained(Budget(0.5, 5, 8), guarded=True)] == [False, False, True]
    (pressed, tuned) = schedules.press_then_prune(Budget(0.5, 5, 8), rate=0.02)
    assert (pressed.rate.base, pressed.rate.policy, pressed.rate.warmup) == (0.02, "cos_step", 0)
    assert tuned.rate is None


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"sparsity": 1.0}, "pruning rate is 1.0: expected at least 0 and less than 1"),
        ({"sparsity": -0.1}, "pruning rate is -0.1"),
        ({"steps": 0}, "0 pruning steps: expected at least 1"),
        ({"epochs": -1}, "-1 epochs: expected 0 or more"),
        ({"dense_epochs": -2}, "-2 epochs: expected 0 or more"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(numbers, reason):
    with pytest.raises(ValueError, match=reason):
        Budget(**numbers)
    assert Budget(sparsity=0.0, dense_epochs=0, epochs=0, steps=1)


@pytest.mark.parametrize("own", [{"share": 0.0}, {"share": 1.01}, {"rate": -0.1}])
def test_shares_and_rates_that_make_no_sense_are_refused(own):
    with pytest.raises(ValueError, match="expected above 0 to 1, and 0 or more"):
        list(schedules.press_trained(Budget(0.5, 0, 8), **own))
    assert [p.epochs for p in schedules.press_trained(Budget(0.5, 0, 8), share=1.0)] == [0, 8, 0]
