"""Problem: what one layer computes, without its numbers. Hashable, so equal layers are tuned once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu")
# Of products, and the type of images: f32 is exact, tf32 has 10 bits of mantissa. Sums are float32 everywhere.
DTYPES = {"f32": "float32", "tf32": "float32", "f16": "float16"}
PRECISIONS = tuple(DTYPES)


@dataclass(frozen=True)
class Problem:
    """A 2-D convolution: y = activation(conv(x, w) + bias [+ residual]).

    A fully connected layer is a 1x1 convolution of a 1x1 image. Sizes in elements; ``padding`` is (top, left, bottom,
    right). ``n`` is N of the 1xN blocks, 0 for dense weights; ``nnzb`` counts the stored blocks.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    residual: bool = False
    n: int = 0
    nnzb: int = 0
    precision: str = "f32"

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"Problem: precision {self.precision!r}; expected one of {', '.join(PRECISIONS)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Problem: activation {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"Problem: {self.groups} groups divide neither {self.in_channels} nor {self.out_channels}")
        if min(self.out_shape) < 1:
            raise ValueError(f"Problem: output {self.out_shape} of {self.describe()} is empty")

    @property
    def dtype(self) -> str:
        """Of images."""
        return DTYPES[self.precision]

    @property
    def out_height(self) -> int:
        top, _, bottom, _ = self.padding
        return (self.height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        _, left, _, right = self.padding
        return (self.width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels, self.out_height, self.out_width)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates on stored weights (padding counted as work, as everywhere in the field)."""
        per_pixel = (
            self.nnzb * self.n * self.taps
            if self.n
            else self.out_channels * self.in_channels // self.groups * self.taps
        )
        return self.batch * self.out_height * self.out_width * per_pixel

    def describe(self) -> str:
        """One short line for tables: 64x56x56 -> 128, 3x3/2."""
        kh, kw = self.kernel
        text = f"{self.in_channels}x{self.height}x{self.width}->{self.out_channels} {kh}x{kw}"
        text += f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        text += f" g{self.groups}" if self.groups > 1 else ""
        return text if self.batch == 1 else f"{self.batch}x {text}"

    def to_json(self) -> str:
        """Canonical text: the key of records and of the custom ONNX operator."""
        fields = asdict(self)
        fields["block"] = fields.pop("n")  # what the key called it from the first
        if self.precision == "f32":  # keys of records made before there was another
            del fields["precision"]
        return json.dumps(fields, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Problem:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        fields["n"] = fields.pop("block", 0)
        return cls(**fields)
