"""A file of another number of classes: a new head where the network is trained on, an error where it is judged."""

import pytest
import torch

from kerf.compress.models import MODELS, create
from kerf.compress.network import surgery
from kerf.compress.network.graph import DependencyGraph
from kerf.compress.pruning.loading import load_network
from kerf.compress.training import checkpoint

EXAMPLE = torch.zeros(1, 3, 32, 32)


def silent(line):
    raise AssertionError(line)


@pytest.mark.parametrize("arch", MODELS)
def test_another_number_of_classes_makes_a_new_head(arch, tmp_path):
    source, target, file = create(arch, 10, 32), create(arch, 3, 32), tmp_path / "w.pth"
    fresh = {name: value.clone() for name, value in target.state_dict().items()}
    torch.save(source.state_dict(), file)
    with pytest.raises(ValueError, match=r"tells 10 classes apart .*, and 3 are expected"):
        load_network(target, file, arch, EXAMPLE)
    assert all(torch.equal(value, fresh[name]) for name, value in target.state_dict().items())
    said, theirs = [], source.state_dict()
    assert load_network(target, file, arch, EXAMPLE, True, said.append) == {}
    (line,) = said
    head = next(word for word in line.split() if f"{word}.weight" in fresh)
    assert line == f"{file} tells 10 classes apart, these images have 3: {head} is new, its weights random"
    for name, value in target.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith(f"{head}.") else theirs[name]), name


def test_a_channel_pruned_network_gets_a_new_head(tmp_path):
    """The head reads as many channels as are left."""
    source, target, file = create("resnet20", 10, 32), create("resnet20", 3, 32), tmp_path / "w.safetensors"
    graph = DependencyGraph.trace(source, EXAMPLE)
    kept = {s.name: torch.arange(0, s.width, 2) for s in graph.sets if not s.fixed}
    surgery.narrow(source, graph, kept)
    header = {"arch": "resnet20", "num_classes": 10, "kept": {name: index.tolist() for name, index in kept.items()}}
    checkpoint.save(file, source.state_dict(), header)
    with pytest.raises(ValueError, match=r"10 classes apart \(linear.weight is \(10, 32\)\), and 3 are"):
        load_network(create("resnet20", 3, 32), file, "resnet20", EXAMPLE)
    found = load_network(target, file, "resnet20", EXAMPLE, True, lambda _: None)
    assert {name: index.tolist() for name, index in found.items()} == header["kept"]
    assert target.linear.weight.shape == (3, 32)
    assert torch.equal(target.layer3[2].conv2.weight, source.layer3[2].conv2.weight)
    assert target(EXAMPLE).shape == (1, 3)


def test_the_same_number_of_classes_is_loaded_in_silence(tmp_path):
    source, target = create("vgg16", 3, 32), create("vgg16", 3, 32)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_network(target, tmp_path / "w.pth", "vgg16", EXAMPLE, True, silent)
    assert torch.equal(target.classifier.weight, source.classifier.weight)


def test_a_head_that_reads_other_features_is_another_network(tmp_path):
    state = create("vgg16", 3, 32).state_dict() | {"classifier.weight": torch.zeros(10, 256)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"another architecture: classifier\.weight is"):
        load_network(create("vgg16", 3, 32), tmp_path / "w.pth", "vgg16", EXAMPLE, True)
