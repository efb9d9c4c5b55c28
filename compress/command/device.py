"""--device and --gpus -> the device of this process."""

import torch

from kerf.compress.command.args import Args
from kerf.compress.training import distributed
from kerf.errors import BadInput


def device_of(args: Args) -> torch.device:
    """Of several processes on a machine each takes the GPU of its own number."""
    name = args.device
    if not distributed.alone() and name.startswith("cuda:"):
        raise BadInput(
            f"--device {name} for {distributed.world()} processes: each takes a GPU of its own; leave it out"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and distributed.alone():
            name = f"cuda:{args.gpus[0]}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and not distributed.alone():
            device = torch.device("cuda", distributed.local_rank())
            torch.cuda.set_device(device)
        torch.ones(1, device=device).item()  # a device without memory, meta, makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"no device {name} here ({str(error).splitlines()[0]}); try --device cpu") from None
    return device
