"""What a bundle's manifest.json holds. Keys may be added; where one goes or changes its meaning, FORMAT grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired, TypeIs  # of typing from Python 3.11 and 3.13 on

FORMAT = 3
READ = (2, FORMAT)  # what this version runs
MOST_THREADS = 4096


class Tensor(TypedDict):
    """dtype: numpy's name. shape: None where it is known only when the network runs; a size that a file leaves open is
    None in it.
    """

    dtype: str
    shape: Any


class OnnxStep(TypedDict):
    """A piece that a dense engine runs. ``file``: its model, in the bundle; inputs, outputs: names of tensors."""

    engine: str
    inputs: list[str]
    outputs: list[str]
    file: str


class KerfStep(TypedDict):
    """A piece that kerf's functions run<suffix> and buffers<suffix> compute, of a library.

    ``function``: the suffix; ``weights``: positions of its weights among those of the bundle.
    """

    engine: str
    inputs: list[str]
    outputs: list[str]
    function: str
    weights: list[int]


Step = KerfStep | OnnxStep  # told apart by "function"


def is_own(step: Step) -> TypeIs[KerfStep]:
    return "function" in step


class Needs(TypedDict, total=False):
    """What code asks of a machine: LLVM's name of its architecture, names in /proc/cpuinfo, a GPU's architecture."""

    machine: str
    features: list[str]
    cuda: str


class PlanEntry(TypedDict):
    """How a network runs for inputs of these sizes. ``library``: a file, None where no piece is kerf's."""

    inputs: dict[str, list[int]]
    library: str | None
    steps: list[Step]
    values: dict[str, Tensor]  # of all names in the steps
    target: NotRequired[str]  # of a bundle for several targets, and what its code asks; else the manifest's
    needs: NotRequired[Needs]


def needs_of(plan: PlanEntry, manifest: Manifest) -> Needs:
    return plan.get("needs", manifest["needs"])


class LayerKernel(TypedDict, total=False):
    """What computes a layer. Older bundles lack "numbers"."""

    name: str
    shape: str
    numbers: str  # "int8", "f32", of a GPU "f16" or "tf32"
    n: int | None  # output kernels of a block; None where a dense kernel runs
    block: str | None  # the same as "4x1"
    density: float  # share of the weights that the kernel computes
    kernel: str
    config: dict[str, Any]
    together_with: str | None  # the layer that one function computes with this one


class Contents(TypedDict):
    """What whoever builds a bundle says of it. "input": the shape of a network's only input, if its sizes are fixed."""

    model: str
    model_sha256: str
    inputs: dict[str, Tensor]  # as the file has them
    outputs: dict[str, Tensor]
    input: list[int] | None
    plans: list[PlanEntry]
    fallback: str | None  # the whole network's model, for inputs of other sizes than those of the plans
    engine: str  # "kerf", or the dense engine that runs the whole network since it is faster than kerf's pieces
    target: str
    needs: Needs
    threads: int
    tvm: str
    versions: dict[str, str]
    layers: list[LayerKernel]


class GpuContents(Contents, total=False):
    """Of a GPU's bundle besides: of its products, and of the source that its library.so holds."""

    precision: str | None
    cuda_source: str


class _Whole(GpuContents):
    format: int
    weights: list[str]
    sha256: dict[str, str]
    manifest_sha256: str


class Manifest(_Whole, total=False):
    """The whole file. "weight_types": of each of the weights; older bundles lack it."""

    weight_types: list[Tensor]


def upgraded(manifest: Any) -> Any:
    """A manifest of format 2, of one input, one output and one piece, in the terms of today's."""
    if manifest["format"] != 2:
        return manifest
    values: dict[str, Tensor] = {
        "input": {"dtype": "float32", "shape": manifest["input"]},
        "output": {"dtype": "float32", "shape": None},
    }
    step: KerfStep = {
        "engine": "kerf",
        "inputs": ["input"],
        "outputs": ["output"],
        "function": "",
        "weights": list(range(len(manifest["weights"]))),
    }
    plan = {"inputs": {"input": manifest["input"]}, "library": "library.so", "steps": [step], "values": values}
    ends = {"inputs": {"input": values["input"]}, "outputs": {"output": values["output"]}}
    return {**manifest, **ends, "plans": [plan], "fallback": None, "engine": "kerf"}
