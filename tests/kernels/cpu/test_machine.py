"""What a target says of its CPU, and what configurations are made of."""

import pytest

from kerf.deploy.compiler import targets
from kerf.errors import BadInput
from kerf.kernels.cpu.machine import FEATURES, Machine, machine_of

pytestmark = pytest.mark.quick

ARM = "llvm -mtriple=aarch64-linux-gnu -mcpu="


@pytest.mark.parametrize(
    ("target", "lanes", "registers", "features", "family"),
    [
        ("x86-64", (4,), 16, set(), ""),
        ("x86-64-v3", (8,), 16, set(), "avx2"),
        ("x86-64-v4", (16, 8), 32, set(), "avx512"),
        ("alderlake", (8,), 16, {"avx_vnni"}, "avx2"),
        ("cascadelake", (16, 8), 32, {"avx512_vnni"}, "avx512"),
        ("sapphirerapids", (16, 8), 32, {"avx512_vnni", "avx512_vbmi", "avx_vnni"}, "avx512"),
        (f"{ARM}generic", (4,), 32, set(), "neon"),
        (f"{ARM}neoverse-n1", (4,), 32, {"dotprod"}, "neon"),
        ("rpi4", (4,), 32, set(), "neon"),
        ("rpi5", (4,), 32, {"dotprod"}, "neon"),
        ("graviton3", (4,), 32, {"dotprod", "i8mm"}, "neon"),
        ("apple-m1", (4,), 32, {"dotprod"}, "neon"),
        (f"{ARM}generic -mattr=+dotprod,+i8mm", (4,), 32, {"dotprod", "i8mm"}, "neon"),
    ],
)
def test_what_a_target_has(target, lanes, registers, features, family):
    machine = machine_of(targets.parse(target, 1))
    assert (machine.lanes, machine.registers) == (lanes, registers)
    assert (machine.features, machine.family) == (features, family)
    assert features <= set(FEATURES.values())


def test_caches_that_today_s_configurations_were_measured_with():
    machine = Machine((8,), 16)
    assert (machine.l1_floats, machine.l2_floats) == (9 * 1024, 320 * 1024)


@pytest.mark.parametrize(("name", "l1"), [("rpi4", 32), ("rpi5", 64), ("graviton3", 64), ("apple-m1", 128)])
def test_caches_of_named_machines(name, l1):
    machine = machine_of(targets.parse(name, 1))
    assert machine.l1 == l1 << 10
    assert machine.l1 < machine.l2


def test_code_for_a_mac_is_linked_on_one():
    with pytest.raises(BadInput, match="linked on a Mac"):
        targets.linking(targets.triple(targets.parse("apple-m1", 1)))
