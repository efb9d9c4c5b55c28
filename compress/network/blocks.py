"""A weight as its 1×n blocks: n consecutive output kernels at one input channel. kerf.kernels.bsr for torch."""

from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # layers whose weights are (O, I, *kernel)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)  # … (I, O, *kernel)


def blocks(weight: Tensor, n: int) -> Tensor:
    """(O, I, *kernel) -> (block rows, I, n · taps); what n does not divide ends in a block row with zeros behind it."""
    outputs, inputs = weight.shape[:2]
    rows = -(-outputs // n)
    padded = functional.pad(weight.reshape(outputs, inputs, -1), (0, 0, 0, 0, 0, rows * n - outputs))
    return padded.reshape(rows, n, inputs, -1).transpose(1, 2).reshape(rows, inputs, -1)
