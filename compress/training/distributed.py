"""Several processes as one: each takes its part of every batch, and all hold the same network.

Processes are those that torchrun starts (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Without them a run is
alone: nothing here then communicates, and every function returns what it was given.

Gradients are summed by one all_reduce after backward, not by DistributedDataParallel: its reducer is built for a fixed
set of parameters, and here channels are cut and grafts come and go. The weights that this gives are the same on all
processes as long as their arithmetic is; what is chosen (an order, channels, clusters) is rank 0's choice, and after
every epoch all go on from rank 0's weights, which those of the others must be close to.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from kerf.compress.data.batches import Part
from kerf.errors import INPUT_ERRORS, BadInput

T = TypeVar("T")
CLOSE = 1e-3  # of a tensor's largest value: how far weights may come apart in an epoch
LEAVING = 10.0  # seconds that a process which failed waits for the others to notice

_store: dist.Store | None = None


def start() -> None:
    """Joins the other processes, if torchrun started any. Raises ValueError or ConnectionError with one line."""
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not alone():
        return
    with _talking():
        _store, rank, world = next(rendezvous("env://"))
        # torchrun keeps one store for all attempts: what an earlier one left in it is not for this one
        _store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {world}", _store)
        # messages and CPU tensors by gloo, GPU tensors by nccl
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world)


def stop() -> None:
    """After a run that ended well."""
    if not alone():
        dist.destroy_process_group()


def alone() -> bool:
    return not dist.is_initialized()


def world() -> int:
    return 1 if alone() else dist.get_world_size()


def first() -> bool:
    """Whether this is rank 0, the one process that writes."""
    return alone() or dist.get_rank() == 0


def part() -> Part:
    return Part() if alone() else Part(dist.get_rank(), dist.get_world_size())


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, nccl's and the store's are of this type
        reason = str(error).strip().splitlines()[0]
        name = f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE')}"
        raise ConnectionError(
            f"{name} cannot reach the others ({reason}); start the run again to continue it"
        ) from error


def is_first_to_fail() -> bool:
    """Counts this process among those that failed; whether none did before it, so that an error is printed once."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # the machine that keeps the store is gone
        return True


def leave(code: int) -> int:
    """The exit code of a process that failed, once the others have noticed and fail by themselves, or some seconds on.

    torchrun stops all processes when one ends: without this their exit codes would be those of a signal.
    """
    if _store is None:
        return code
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr.flush()
    if not alone() and not torch.cuda.is_available():  # nccl would wait for the others
        dist.destroy_process_group()  # who waits for this process gets an error now
    until = time.monotonic() + LEAVING
    with contextlib.suppress(RuntimeError):
        while _store.add("failed", 0) < int(os.environ["WORLD_SIZE"]) and time.monotonic() < until:
            time.sleep(0.02)
    return code


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns or raises on rank 0, on every process. Its input errors reach the others as ValueError."""
    if alone():
        return work()
    result, error = None, None
    if first():
        try:
            result = work()
        except INPUT_ERRORS as caught:
            error = caught
    outcome: list[Any] = [result, error and str(error)]
    with _talking():
        dist.broadcast_object_list(outcome)
    if error:
        raise error
    if outcome[1] is not None:
        raise BadInput(outcome[1])
    return outcome[0]


def together(work: Callable[[], T]) -> T:
    """Runs `work`, which must not communicate, everywhere; where it fails on one process, it raises on all."""
    if alone():
        return work()
    result, error = None, None
    try:
        result = work()
    except INPUT_ERRORS as caught:
        error = caught
    reason = next(((rank, text) for rank, text in enumerate(gather(error and str(error))) if text is not None), None)
    if reason and reason[0]:
        raise BadInput(f"process {reason[0]}: {reason[1]}")
    if reason:
        raise error or BadInput(reason[1])
    return cast(T, result)  # no process has failed


def gather(value: T) -> list[T]:
    """Every process's value, by rank."""
    if alone():
        return [value]
    values: list[Any] = [None] * world()
    with _talking():
        dist.all_gather_object(values, value)
    return values


def check_same(what: str, value: object) -> None:
    """Raises ValueError on every process where one has another `value` than rank 0."""
    values = gather(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise BadInput(f"process {rank} has other {what} than process 0: give every machine the same files")


def total(values: Tensor) -> Tensor:
    """The sum over all processes, as a new tensor."""
    if alone():
        return values
    values = values.clone()
    with _talking():
        dist.all_reduce(values)
    return values


def stacked(values: Tensor) -> Tensor:
    """(n,) -> (processes, n), by rank."""
    found = [torch.empty_like(values) for _ in range(world())]
    with _talking():
        dist.all_gather(found, values)
    return torch.stack(found)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """∂L/∂w ← its sum over all processes, in place."""
    if alone():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    joined = total(torch.cat([g.reshape(-1) for g in gradients]))
    for gradient, own in zip(gradients, joined.split([g.numel() for g in gradients])):
        gradient.copy_(own.view(gradient.shape))


def from_first(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rank 0's tensors, on every process; their shapes and types have to be those of the tensors given here."""
    if alone() or not tensors:
        return list(tensors)
    device = tensors[0].device
    own = [t.detach().contiguous().view(-1).view(torch.uint8).to(device) for t in tensors]
    joined = torch.cat(own)
    with _talking():
        dist.broadcast(joined, 0)
    parts = joined.split([len(o) for o in own])
    # cloned: a view of another type has to start at a multiple of its size
    return [b.clone().view(t.dtype).view(t.shape).to(t.device) for b, t in zip(parts, tensors)]


@torch.no_grad()
def agree(weights: Mapping[str, Tensor], when: str, others: Sequence[Tensor] = ()) -> None:
    """Gives all these tensors, in place, rank 0's values.

    Raises ValueError on every process where one of the named ones was not close to them on any.
    """
    if alone():
        return
    apart, worst = 0.0, ""
    for (name, own), given in zip(weights.items(), from_first(list(weights.values()))):
        if own.numel():
            size = given.abs().max().double().clamp(min=1e-6)
            distance = float((own.double() - given.double()).abs().max() / size)
            if not distance <= apart:  # NaN, too
                apart, worst = distance, name
        own.copy_(given)
    for own, given in zip(others, from_first(others)):
        own.copy_(given)
    for rank, (distance, name) in enumerate(gather((apart, worst))):
        if not distance <= CLOSE:
            raise BadInput(
                f"{when}, {name} of process {rank} is {distance:.1e} of its size away from that of process 0, expected "
                f"at most {CLOSE:g}: give every machine the same files, versions and kind of processor"
            )
