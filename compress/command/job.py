"""What a run of the command line works on: all of its input, read and checked before anything is trained or written."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kerf.compress.command.args import Args
from kerf.compress.command.device import device_of
from kerf.compress.command.folder import check_writable, last
from kerf.compress.command.planning import method_of, plan
from kerf.compress.data.batches import images_of
from kerf.compress.data.sets import Data, Options, open_data
from kerf.compress.models import MODELS, create
from kerf.compress.network import cost
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning import recipe
from kerf.compress.pruning.loading import load_grids, load_network
from kerf.compress.pruning.recipe import Recipe
from kerf.compress.pruning.schedules import Budget
from kerf.compress.training import checkpoint, distributed
from kerf.compress.training.board import writer
from kerf.compress.training.quantise import Grids
from kerf.errors import BadInput

TORCHVISION = "torchvision"  # in place of a file of weights: those that torchvision offers


@dataclass(frozen=True)
class Job:
    """Everything a run needs, checked: from here on only the work itself can fail."""

    args: Args
    method: str
    device: torch.device
    data: Data
    model: nn.Module
    graph: DependencyGraph
    recipe: Recipe
    budget: Budget
    kept: dict[str, torch.Tensor]  # channels that the given weights had left, if they are of a narrow network
    grids: Grids  # of the given weights, if they are of a quantised network
    dense: cost.Cost  # of the network before this run
    notes: tuple[str, ...] = ()  # what there is to tell the user of the input

    @property
    def example(self) -> torch.Tensor:
        return torch.zeros(1, 3, self.data.image_size, self.data.image_size)

    @property
    def by_macs(self) -> bool:
        return self.recipe.cuts and self.args.pr_target is None


def prepare(args: Args) -> Job:
    """Raises BadInput, OSError or ImportError with one line."""
    method, device = method_of(args), device_of(args)
    weights = args.pruned_model or args.pretrained_model
    file = Path(weights) if weights not in (None, TORCHVISION) else None
    check_names(args, file)
    torch.manual_seed(args.seed)
    data = data_of(args, device, trains=not args.pruned_model and trains(args, weights))
    notes = list(data.notes)  # all that the user is to be told goes here; cli.work says it
    model = create(args.arch, data.num_classes, data.image_size, pretrained=weights == TORCHVISION)
    model.eval()
    example = torch.zeros(1, 3, data.image_size, data.image_size)
    kept = load_network(model, file, args.arch, example, not args.pruned_model, notes.append) if file else {}
    grids = load_grids(model, file) if file else {}
    if args.quantise:
        refuse_integers(method, data, grids if args.pruned_model else {})
    graph = DependencyGraph.trace(model, example, args.strict)
    chosen, budget = plan(args, method, weights)
    if args.rearrange and not chosen.rearrange and not args.pruned_model:
        notes.append(f"--rearrange orders filters for blocks; method {method} has none, so it changes nothing")
    if not args.pruned_model and budget.sparsity and method != "dense":
        graph = recipe.check(model, chosen, graph, example, budget.sparsity, args.strict)
    if graph.note and (chosen.cuts or chosen.rearrange):
        notes.append(graph.note)
    spent = cost.count(model, example)
    return Job(args, method, device, data, model, graph, chosen, budget, kept, grids, spent, tuple(notes))


def refuse_integers(method: str, data: Data, grids: Grids) -> None:
    """Raises BadInput for what --quantise cannot work on: weights on grids, data without training images."""
    if method == "drl" or grids:
        what = "method drl quantises by itself" if method == "drl" else "these weights are of a quantised network"
        raise BadInput(f"--quantise: {what}; leave it out")
    if data.val is None:
        raise BadInput("--quantise takes ranges from images of the train folder, of which there is none")


def check_names(args: Args, weights: Path | None) -> None:
    """Raises for a network, a file or a folder that cannot be used, all of which are told by a look."""
    if args.arch not in MODELS:
        raise BadInput(f"unknown --arch {args.arch}: expected one of {', '.join(MODELS)}")
    if args.tensorboard:
        writer()
    if weights and not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights}: expected a .safetensors, .pth or .pt file")
    if not distributed.first():  # of several machines one has the run's folder
        return
    if args.resume:
        if not last(args.resume).is_file():
            raise FileNotFoundError(f"no finished epoch to resume in {args.resume}: start the run again")
        if "phase" not in checkpoint.load_state(last(args.resume)):
            raise BadInput(f"{last(args.resume)} is no run of kerf's, so it cannot be resumed: start the run again")
    check_writable(args)


def trains(args: Args, weights: str | None) -> bool:
    return bool(args.finetune_epochs or args.recalibrate or (args.num_epochs and not weights))


def data_of(args: Args, device: torch.device, trains: bool) -> Data:
    """Raises if it lacks training images, or has fewer of them in a batch than there are processes."""
    options = Options(
        path=args.data_path,
        train_batch=args.train_batch_size,
        eval_batch=args.eval_batch_size,
        workers=args.workers,
        image_size=args.image_size,
        num_classes=args.num_classes,
        subset=args.subset,
        bad_images=args.bad_images,
        dali_device=str(device) if args.use_dali else None,
    )
    data = open_data(args.data_set, options)
    if not trains:
        return data
    if data.train is None:
        raise BadInput(f"{args.data_path} has no train folder: give --num_epochs 0, or --evaluate FILE")
    if (batch := images_of(data.train)) < distributed.world():
        raise BadInput(f"{batch} images in a training batch for {distributed.world()} processes: expected one for each")
    return data


def check_alike(job: Job) -> None:
    """Raises BadInput on every process where one has read other images or another network than the others."""
    if distributed.alone():
        return
    parts = (job.data.train, job.data.val, job.data.test)
    distributed.check_same("images", [part and zlib.crc32("\n".join(part.names).encode()) for part in parts])
    distributed.check_same("weights", {name: tuple(t.shape) for name, t in job.model.state_dict().items()})
    distributed.agree(job.model.state_dict(), "in the beginning")
