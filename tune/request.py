"""What is asked of a compilation, as one value: the command's flags and kerf.compile's arguments become it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kerf.deploy.quantise.calibration import METHOD, MOST, Calibration
from kerf.deploy.runtime.manifest import MOST_THREADS
from kerf.errors import BadInput
from kerf.images import MEAN, STD
from kerf.kernels.precision import PRECISIONS

RECORDS = Path("runs/records.jsonl")
ENGINES = ("auto", "kerf")
FORMATS = ("bundle", "ort")
CALIBRATED = ("int8", "calibration", "calibration_method", "calibration_images", "mean", "std")
DENSE_ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Request:
    """Raises BadInput, naming the value, for numbers and names that mean nothing."""

    path: Path
    out: Path
    n: tuple[int, ...] = (4,)
    sparsity: float = 0.5
    target: str = "native"
    precision: str = ""  # of a GPU's products; "": what the target takes by itself
    threads: int = 1
    batch: int | None = None
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()  # of inputs, by name; a plan for each
    trials: int = 1000
    minutes: float | None = None
    tolerance: float = 0.005
    against: tuple[str, ...] = DENSE_ENGINES
    seconds: float = 10.0
    engine: str = "auto"
    format: str = "bundle"
    records: Path = RECORDS
    rpc: str = ""
    rpc_key: str = ""
    int8: bool = False
    calibration: Path | None = None
    calibration_method: str = METHOD
    calibration_images: int = MOST
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise BadInput(f"--threads {self.threads}: expected 1 to {MOST_THREADS}")
        if self.batch is not None and self.batch < 1:
            raise BadInput(f"--batch {self.batch}: expected at least 1")
        for name, value in (("tune_minutes", self.minutes), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise BadInput(f"--{name} {value}: expected more than 0")
        if not 0 <= self.tolerance < 1:
            raise BadInput(f"--tolerance {self.tolerance}: expected a share of the time, at least 0 and below 1")
        if self.trials < 0:
            raise BadInput(f"--trials {self.trials}: expected 0 (no tuning) or more")
        if self.precision not in ("", *PRECISIONS):
            raise BadInput(f"--precision {self.precision}: expected one of {', '.join(PRECISIONS)}")
        if self.engine not in ENGINES:
            raise BadInput(f"--engine {self.engine}: expected one of {', '.join(ENGINES)}")
        if self.format not in FORMATS:
            raise BadInput(f"--format {self.format}: expected one of {', '.join(FORMATS)}")
        if self.format == "ort" and (len(self.shapes) > 1 or self.rpc):
            raise BadInput("--format ort: takes neither --rpc nor several --shape; a model of ONNX Runtime's has one")
        if len({tuple(sorted(shapes.items())) for shapes in self.shapes}) < len(self.shapes):
            raise BadInput("--shape: the same sizes twice; give each once")
        if self.int8 and self.calibration is None:
            raise BadInput("--int8 takes ranges from samples: give --calibration DIR of images, or an .npz of arrays")
        if self.calibration is not None and not self.int8:
            raise BadInput("--calibration is for quantising: give --int8 as well, or leave it out")
        if self.calibration is not None:
            _ = self.samples
        unknown = sorted(set(self.against) - set(DENSE_ENGINES))
        if unknown:
            raise BadInput(f"--against: {', '.join(unknown)} is not known; expected {', '.join(DENSE_ENGINES)}")

    @property
    def samples(self) -> Calibration:
        """What int8 is calibrated with. Raises BadInput for values that mean nothing."""
        assert self.calibration is not None
        return Calibration(self.calibration, self.calibration_method, self.calibration_images, self.mean, self.std)

    def describe(self) -> str:
        asked = {name: value for name, value in vars(self).items() if self.int8 or name not in CALIBRATED}
        return "  ".join(f"{name}={value}" for name, value in asked.items())


def bundle_of(path: Path, int8: bool) -> Path:
    """Where the bundle of a file lies if nothing else is said: beside it, a quantised one beside that of f32."""
    return path.with_suffix(".int8.kerf" if int8 else ".kerf")


def quantised_of(out: Path) -> Path:
    """Where the quantised file of a bundle at ``out`` lies: beside it."""
    return out.with_name(f"{out.name.removesuffix('.kerf').removesuffix('.int8')}.int8.onnx")
