import pytest
import torch
from torch import nn

from kerf import files
from kerf.compress.training import checkpoint

pytestmark = pytest.mark.quick


def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_tensors_and_state_come_back(tmp_path):
    tensors = {"a": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor([True, False])}
    checkpoint.save(tmp_path / "x.safetensors", tensors, {"epoch": 3, "rows": [{"loss": 0.1}]})
    read, state = checkpoint.load(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert state == {"epoch": 3, "rows": [{"loss": 0.1}]}


def interrupt_halfway(path):
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"good": True})
    with pytest.raises(TypeError):
        files.write_json(path, {"bad": object()})
    with pytest.raises(KeyboardInterrupt):
        interrupt_halfway(path)
    assert '"good": true' in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_usual_forms_of_a_state_dict(tmp_path, prefix, wrapper, suffix):
    source, target = net(), net()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 7} if wrapper else state, tmp_path / f"w{suffix}")
    checkpoint.load_weights(target, tmp_path / f"w{suffix}")
    assert same(source, target)


def test_a_run_to_resume_serves_as_weights(tmp_path):
    source, target = net(), net()
    tensors = {f"model.{k}": v for k, v in source.state_dict().items()} | {"momentum.0.weight": torch.zeros(1)}
    checkpoint.save(tmp_path / "last.safetensors", tensors)
    checkpoint.load_weights(target, tmp_path / "last.safetensors")
    assert same(source, target)


def test_a_seed_checkpoint_is_baked(tmp_path):
    """Its masks are kept beside raw weights, and its classifier is a 1x1 convolution."""
    source, target = net(), net()
    state = source.state_dict()
    mask = (torch.rand_like(state["0.weight"]) < 0.5).float()
    torch.save(state | {"0.mask": mask, "3.weight": state["3.weight"][:, :, None, None]}, tmp_path / "w.pt")
    checkpoint.load_weights(target, tmp_path / "w.pt")
    assert torch.equal(target[0].weight, state["0.weight"] * mask)
    assert torch.equal(target[3].weight, state["3.weight"])


def test_another_architecture_is_refused_and_nothing_loaded(tmp_path):
    target = net(4)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.save(net(6).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"another architecture: 0\.weight is \(6, 3, 3, 3\), expected \(4, 3, 3, 3\)"):
        checkpoint.load_weights(target, tmp_path / "w.pt", new_head=True)
    torch.save({"other.weight": torch.zeros(1), **nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="another architecture") as refusal:
        checkpoint.load_weights(target, tmp_path / "w.pt", new_head=True)
    assert str(refusal.value).endswith(
        "another architecture: it lacks 6 of 9 tensors, 1.weight, 1.bias, 1.running_mean and 3 more; "
        "1 of its 3 tensors are of no layer, other.weight"
    )
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = net()
    source[3].bias.data[1] = float("nan")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"3\.bias has NaN"):
        checkpoint.load_weights(net(), tmp_path / "w.pt")


class Attack:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_what_is_not_a_state_dict_is_refused(tmp_path, capsys):
    torch.save({"w": Attack()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        checkpoint.read_weights(tmp_path / "w.pt")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.read_weights(tmp_path / "cut.pt")
    checkpoint.save(tmp_path / "w.safetensors", {"w": torch.zeros(100)})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.read_weights(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        checkpoint.read_weights(tmp_path / "absent.pth")
