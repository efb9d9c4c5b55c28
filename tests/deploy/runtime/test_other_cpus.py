"""CPUs that are not at hand, by what Linux says of them: Alder Lake (AVX-VNNI), Sapphire Rapids (AMX), Zen 3."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kerf.deploy.compiler import pretuned, targets
from kerf.deploy.compiler.choice import ways
from kerf.deploy.measure import environment, rivals
from kerf.deploy.runtime import machine, session
from kerf.kernels.cpu.machine import machine_of
from kerf.kernels.problem import Problem
from kerf.kernels.tensor_type import TensorType

COMMON = (
    "fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm bmi1 avx2 bmi2 adx"
)
AVX512 = "avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg"
FLAGS = {
    "zen 3": f"{COMMON} vaes vpclmulqdq",
    "alder lake": f"{COMMON} avx_vnni gfni vaes vpclmulqdq",
    "sapphire rapids": f"{COMMON} {AVX512} avx512_vpopcntdq avx512_bf16 avx512_fp16 avx_vnni gfni vaes vpclmulqdq "
    "amx_bf16 amx_tile amx_int8",
}
FLEET = "x86-64-v3,alderlake,sapphirerapids"
U8, I8 = TensorType("u8", 1.0, 0), TensorType("i8", axis=0)
POINTWISE = Problem(1, 96, 14, 14, 96, n=4, nnzb=12 * 96, x=U8, w=I8, y=U8)
SPATIAL = replace(POINTWISE, kernel=(3, 3), padding=(1, 1, 1, 1))


@pytest.fixture
def cpu(monkeypatch, tmp_path):
    """Makes /proc/cpuinfo that of a CPU."""

    def take(name: str) -> None:
        said = tmp_path / "cpuinfo"
        said.write_text(f"processor\t: 0\nmodel name\t: {name}\nflags\t\t: {FLAGS[name]}\n\n")
        monkeypatch.setattr(machine, "Path", lambda path: said if path == "/proc/cpuinfo" else Path(path))
        monkeypatch.setattr(environment, "read", lambda path: said.read_text() if path == "/proc/cpuinfo" else "")
        monkeypatch.setattr(machine, "architecture", lambda name="": "x86_64")

    return take


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("zen 3", ["x86-64-v3"]),
        ("alder lake", ["alderlake", "x86-64-v3"]),
        ("sapphire rapids", ["sapphirerapids", "alderlake", "x86-64-v3"]),
    ],
)
def test_a_bundle_s_code_that_asks_most_of_what_the_cpu_has_runs(cpu, name, runs):
    cpu(name)
    fleet = targets.several(FLEET, 1)
    plans = [{"target": targets.describe(t), "needs": targets.needs(t)} for t in fleet]
    found, reason = session._runnable({"plans": plans, "target": "", "needs": plans[0]["needs"]}, None)
    assert [plan["target"] for plan in found] == [targets.describe(targets.parse(n, 1)) for n in runs]
    assert reason is None


def test_what_is_lacking_is_said(cpu):
    cpu("zen 3")
    assert "avx_vnni" in str(targets.foreign(targets.parse("alderlake", 1)))
    cpu("alder lake")
    assert targets.foreign(targets.parse("alderlake", 1)) is None
    assert "avx512f" in str(targets.foreign(targets.parse("sapphirerapids", 1)))


@pytest.mark.parametrize("p", [POINTWISE, SPATIAL], ids=["1x1", "3x3"])
@pytest.mark.parametrize(
    ("target", "dot", "width"),
    [
        ("x86-64-v3", "maddubs", 32),
        ("alderlake", "vnni", 32),
        ("raptorlake", "vnni", 32),
        ("sapphirerapids", "vnni", 64),
    ],
)
def test_defaults_of_integers(p, target, dot, width):
    """Untuned: the widest vectors, and the instruction that a CPU has."""
    config = ways(p, targets.parse(target, 1))[0][0].config
    assert config["dot"] == dot
    assert config["bytes"] <= width
    assert max(c.config["bytes"] for c in ways(p, targets.parse(target, 1))[0]) == width


def test_records_of_one_are_not_taken_for_another_s(monkeypatch, tmp_path):
    """AVX2 and AVX-VNNI are one family of floats; a row of integers names its instruction."""
    avx2, vnni = (targets.parse(name, 1) for name in ("x86-64-v3", "alderlake"))
    assert pretuned.file_of(avx2) == pretuned.file_of(vnni)
    monkeypatch.setattr(pretuned, "FOLDER", tmp_path)
    best = ways(POINTWISE, avx2)[0][-1]
    (tmp_path / "avx2.jsonl").write_text(pretuned.line(POINTWISE, best, avx2) + "\n")
    assert json.loads((tmp_path / "avx2.jsonl").read_text())["config"]["dot"] == "maddubs"
    assert pretuned.known(POINTWISE, avx2) == best
    assert pretuned.known(POINTWISE, vnni) is None


def test_on_a_cpu_that_multiplies_bf16_the_dense_engine_that_does_is_raced(cpu):
    cpu("sapphire rapids")
    assert rivals.multiplies_bf16()
    assert {"avx_vnni", "amx_tile", "amx_int8"} <= set(environment.environment()["machine"]["vector_sets"])
    cpu("alder lake")
    assert not rivals.multiplies_bf16()
    assert {"avx_vnni"} <= set(environment.environment()["machine"]["vector_sets"])


def test_caches_of_cpus_with_avx_vnni_are_their_own():
    sizes = {name: machine_of(targets.parse(name, 1)).l2 >> 10 for name in ("x86-64-v3", "alderlake", "sierraforest")}
    assert sizes == {"x86-64-v3": 512, "alderlake": 1280, "sierraforest": 4096}
