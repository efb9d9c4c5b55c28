"""Target strings of the command line -> TVM targets, their canonical text, and what their code asks of a machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import cast

from tvm.support import cc
from tvm.target import Target
from tvm.target.codegen import llvm_get_cpu_features, llvm_get_system_cpu, llvm_is_valid_cpu

from kerf.deploy.runtime import gpu
from kerf.deploy.runtime.machine import CHECKED, architecture, missing
from kerf.deploy.runtime.manifest import Needs
from kerf.errors import BadInput
from kerf.kernels.backends import backend_of
from kerf.kernels.cuda.compiler import ARCHITECTURES

# Boards and machines that people have, and the CPU in them; what kernels assume of it is in kernels/cpu/machine.py.
NAMED = {
    "rpi4": "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72",  # Raspberry Pi 4, 400
    "rpi5": "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76",  # Raspberry Pi 5, 500
    "graviton3": "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1",  # AWS c7g, m7g, r7g
    "apple-m1": "llvm -mtriple=arm64-apple-macosx -mcpu=apple-m1",
}


def parse(text: str, threads: int) -> Target:
    """ "native", a CPU name such as "x86-64-v3", a machine of NAMED, "llvm -mcpu=... -mtriple=... -mattr=+a,+b", or
    "cuda -arch=sm_90".

    Raises ValueError.
    """
    text = NAMED.get(text, text)
    if text.split()[:1] == ["cuda"]:
        return _cuda(text)
    if text in ("native", "llvm", "host"):
        fields = {"mcpu": llvm_get_system_cpu()}
    elif not text.startswith("llvm"):
        fields = {"mcpu": text}
    else:
        fields = {}
        for word in text.split()[1:]:
            key, _, value = word.lstrip("-").partition("=")
            if not word.startswith("-") or key not in ("mcpu", "mtriple", "mattr") or not value:
                raise BadInput(f"--target {text!r}: {word!r} is not understood; expected -mcpu=, -mtriple= or -mattr=")
            fields[key] = value.split(",") if key == "mattr" else value
    if "mcpu" not in fields and "mtriple" not in fields:
        raise BadInput(f"--target {text!r}: says no CPU; add -mcpu=, or -mtriple= for another architecture")
    if "mtriple" not in fields and not llvm_is_valid_cpu(fields["mcpu"], architecture()):
        raise BadInput(f"--target {text!r}: LLVM knows no such CPU; try native, x86-64-v3, {', '.join(NAMED)}")
    return Target({"kind": "llvm", "num-cores": threads, **fields})


def several(text: str, threads: int) -> list[Target]:
    """The targets of a text in which commas stand between them: one bundle then holds code for each.

    Those that ask most of a CPU come first. Raises ValueError, also where no one machine could choose between them.
    """
    found = [parse(part.strip(), threads) for part in re.split(r",(?=\s*[A-Za-z])", text)]
    different = list({describe(target): target for target in found}.values())
    if len(different) > 1 and (any(map(on_gpu, found)) or len({needs(target)["machine"] for target in found}) > 1):
        raise BadInput(f"--target {text!r}: several targets in one bundle are CPUs of one architecture")
    return sorted(different, key=lambda target: -len(needs(target)["features"]))


def _cuda(text: str) -> Target:
    """ "cuda" alone is this machine's GPU."""
    words = text.split()[1:] or [f"-arch={gpu.architecture() or 'none'}"]
    arch = words[0].removeprefix("-arch=")
    if arch == "none":
        raise BadInput(f"--target {text!r}: this machine has no NVIDIA GPU; name one, for instance cuda -arch=sm_90")
    if len(words) > 1 or arch not in ARCHITECTURES:
        raise BadInput(f"--target {text!r}: expected cuda -arch= and one of {', '.join(ARCHITECTURES)}")
    return Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm"})


def on_gpu(target: Target) -> bool:
    return bool(backend_of(target).device)


def describe(target: Target) -> str:
    """Canonical text, the key of records: everything that changes code, nothing that does not."""
    given = {k: target.attrs[k] for k in backend_of(target).attributes if k in target.attrs}
    said = [f"-{k}={','.join(map(str, v)) if k == 'mattr' else v}" for k, v in given.items()]
    return " ".join([target.kind.name, *said])


def triple(target: Target) -> str:
    """Of the architecture it is cross-compiled for; "" for this one's."""
    return str(target.attrs.get("mtriple", ""))


def linking(triple: str) -> dict[str, Callable]:
    """Arguments of export_library: libraries for another architecture are linked by its own compiler.

    Raises ValueError where that is not installed.
    """
    if not triple:
        return {}
    if "apple" in triple:
        raise BadInput(f"{triple}: libraries for macOS are linked on a Mac; there, --target native")
    if not shutil.which(f"{triple}-g++"):
        raise BadInput(f"{triple}-g++ links libraries for {triple} and is not installed; Debian: g++-{triple}")
    return {"fcompile": cc.cross_compiler(f"{triple}-g++")}


def needs(target: Target) -> Needs:
    """Machine and instruction sets that code for ``target`` may use."""
    machine = architecture(triple(target).split("-")[0])
    if device := backend_of(target).device:  # the code for the host takes what every CPU of this architecture has
        asked = {"machine": machine, "features": [], device: str(target.attrs["arch"])}
        return cast(Needs, asked)  # which names its devices as backends do
    features = {CHECKED[f] for f in map(str, llvm_get_cpu_features(target)) if f in CHECKED}
    return {"machine": machine, "features": sorted(features)}


def foreign(target: Target) -> str | None:
    """Why this machine cannot run code for ``target``; None when it can."""
    return missing(needs(target))
