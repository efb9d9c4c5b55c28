"""Recipes as published: what the authors' own programs train with, by method, data set and, where they differ, network.

Sources: github.com/DingXiaoH/ResRep (rr/resrep_config.py, train_base_model.py), DingXiaoH/Centripetal-SGD (its
configurations), the RNI authors' notebook, Eric-mingjie/network-slimming (README and main.py), lmbxmu/1xN
(utils/options.py), Zx55/dmcp (config/), MingSun-Tse/Regularization-Pruning (scripts/), youzhonghui/
gate-decorator-pruning (run/). What cannot be said by this program's flags is in ``differs``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from kerf.errors import BadInput

# flags that count epochs, which --epochs_scale multiplies
EPOCHS = ("num_epochs", "finetune_epochs", "lr_decay_step", "warmup_length")


@dataclass(frozen=True)
class Published:
    """``flags``: name -> value, as they are typed. ``numbers``: the method's own, for --set.

    ``whole`` holds numbers that go with the whole length alone: scaled down, a method finds its own pace for them.
    """

    flags: Mapping[str, Any]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = False  # begins with trained weights, which --pretrained_model has to give
    differs: str = ""

    def scaled(self, scale: float) -> dict[str, Any]:
        """The values of flags, epochs times `scale`, at least one of each that there are."""

        def shorter(epochs: int) -> int:
            return max(1, round(epochs * scale)) if epochs else 0

        values = dict(self.flags)
        for name in EPOCHS:
            if isinstance(value := values.get(name), tuple):
                values[name] = tuple(dict.fromkeys(map(shorter, value)))
            elif value is not None:
                values[name] = shorter(value)
        numbers = {**self.numbers, **(self.whole if scale == 1 else {})}
        # twelve digits: a share of six, times the epochs, is a whole number and a little more, which is rounded up
        return values | {"set": tuple(f"{name}={value:.12g}" for name, value in numbers.items())}


def _plain(lr: float, batch: int, decay: float, **more: Any) -> dict[str, Any]:
    return {"lr": lr, "train_batch_size": batch, "weight_decay": decay, "warmup_length": 0, **more}


def _steps(lr: float, batch: int, decay: float, at: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return _plain(lr, batch, decay, lr_policy="step", lr_decay_step=at, lr_gamma=0.1, **more)


CIFAR, IMAGENET = ("cifar10", "cifar100"), ("imagenet",)
ANY = "*"
LASTING = "biases have twice the rate there, and theirs and the batch norms' do not decay"
_WHOLE_RESREP = {"lasso": 1e-4, "compactor_momentum": 0.99, "mask_interval": 200}
_NOTEBOOK = _steps(0.1, 64, 1e-4, (80, 120), num_epochs=160, finetune_epochs=160, nesterov=True)
_SLIMMING = _steps(0.1, 64, 1e-4, (80, 120), num_epochs=160, finetune_epochs=160)
_ONE_BY_N = {
    "lr": 0.01, "train_batch_size": 256, "weight_decay": 4e-5, "warmup_length": 5, "lr_policy": "cos",
    "finetune_epochs": 180,
}  # fmt: skip
# epochs under the penalty: the authors' steps, by the training images that are left beside the validation part
_GREG_CIFAR = {"greg1": 314, "greg2": 342}  # 110,000 and, with picking, 119,000 steps of 128 images
_GREG_IMAGENET = {"greg1": 19, "greg2": 20}  # 90,000 and 94,500 steps
_GATES = _plain(0.01, 128, 5e-4, lr_policy="triangle", finetune_epochs=340)
_DMCP = {"lr": 0.8, "train_batch_size": 512, "lr_policy": "cos_step", "warmup_length": 1, "label_smoothing": 0.1,
         "nesterov": True, "num_epochs": 40}  # fmt: skip

# (method, data sets, pattern of networks), of which the first that fits is taken
TABLE: tuple[tuple[str, tuple[str, ...], str, Published], ...] = (
    ("dense", CIFAR, ANY, Published(_steps(0.1, 64, 1e-4, (120, 180), num_epochs=240),
                                    differs="ResRep's base model; " + LASTING)),
    ("resrep", CIFAR, ANY, Published(_plain(0.01, 64, 1e-4, lr_policy="cos_step", finetune_epochs=480),
                                     {"start": 5 / 480}, _WHOLE_RESREP, True, LASTING)),
    ("resrep", IMAGENET, ANY, Published(_plain(0.01, 256, 1e-4, lr_policy="cos_step", finetune_epochs=180),
                                        {"start": 5 / 180}, _WHOLE_RESREP, True, LASTING)),
    ("csgd", CIFAR, "densenet40", Published(
        _steps(3e-3, 64, 1e-4, (200, 400, 500), finetune_epochs=600, nesterov=True), {}, {"strength": 3e-3}, True,
        "vectors have a tenth of the strength here, as in the authors' later program")),
    ("csgd", CIFAR, ANY, Published(_steps(3e-2, 64, 1e-4, (200, 400), finetune_epochs=600, nesterov=True),
                                   {}, {"strength": 3e-3}, True, LASTING)),
    ("csgd", IMAGENET, ANY, Published(
        _steps(3e-3, 256, 1e-4, (30, 50, 60), finetune_epochs=70, nesterov=True) | {"warmup_length": 5},
        {}, {"strength": 0.05}, True, LASTING)),
    ("rni", CIFAR, "vgg16", Published(_NOTEBOOK, {"reg_weight": 1e-3, "b": 3})),
    ("rni", CIFAR, "resnet*", Published(_NOTEBOOK, {"reg_weight": 1e-4, "b": 0})),
    ("rni", CIFAR, ANY, Published(_NOTEBOOK, {"reg_weight": 1e-4, "b": 3})),
    ("ucs", CIFAR, ANY, Published(_NOTEBOOK, differs="γ starts at 1, theirs at 0.5")),
    ("slimming", CIFAR, "vgg16", Published(_SLIMMING, {"reg_weight": 1e-4}, differs="γ starts at 1, theirs at 0.5")),
    ("slimming", CIFAR, ANY, Published(_SLIMMING, {"reg_weight": 1e-5}, differs="γ starts at 1, theirs at 0.5")),
    ("one_by_n", IMAGENET, ANY, Published(_ONE_BY_N, trained=True, differs="biases are trained; theirs are frozen")),
    ("dmcp", IMAGENET, "mobilenet*", Published(
        _DMCP | {"weight_decay": 4e-5, "finetune_epochs": 250}, {"search_rate": 0.5, "arch_lr": 0.5, "eta": 0.1},
        differs="the batch is that of 8 GPUs with 64 images; the search ends at a rate of 0, theirs at 0.08, and "
        "batch norms and biases decay")),
    ("dmcp", IMAGENET, ANY, Published(
        _DMCP | {"weight_decay": 1e-4, "finetune_epochs": 100}, {"search_rate": 0.5, "arch_lr": 0.5, "eta": 0.1},
        differs="the batch is that of 8 GPUs with 64 images; the search ends at a rate of 0, theirs at 0.08, and has "
        "the retraining's label smoothing")),
    *((name, CIFAR, ANY, Published(_steps(0.01, 128, 5e-4, (60, 90), finetune_epochs=first + 120),
                                   {"rate": 1e-3, "share": first / (first + 120), "interval": 10}, trained=True,
                                   differs=f"{first} of the epochs are the penalty's steps, counted there"))
      for name, first in _GREG_CIFAR.items()),
    *((name, IMAGENET, ANY, Published(_steps(0.01, 256, 1e-4, (30, 60, 75), finetune_epochs=first + 90),
                                      {"rate": 1e-3, "share": first / (first + 90), "interval": 5}, trained=True,
                                      differs=f"{first} of the epochs are the penalty's steps, of 64 images there"))
      for name, first in _GREG_IMAGENET.items()),
    ("gate_decorator", CIFAR, ANY, Published(
        _GATES, {"rate": 0.01, "share": 300 / 340, "reg_weight": 1e-3, "rounds": 15, "ticks": 10}, trained=True,
        differs="fine-tuning keeps its momentum; ten last epochs at a rate of 1e-3, for ResNet-56, are left out")),
)  # fmt: skip


def published(method: str, data_set: str, arch: str) -> Published:
    """What the authors of `method` train `arch` with on that data. Raises BadInput where that is not known here."""
    known = [(name, data) for name, data, _, _ in TABLE if name == method]
    for name, data, networks, recipe in TABLE:
        if name == method and data_set in data and fnmatch(arch, networks):
            return recipe
    if not known:
        names = ", ".join(dict.fromkeys(name for name, *_ in TABLE))
        raise BadInput(f"--recipe published: none is known of method {method}; there are those of {names}")
    having = ", ".join(dict.fromkeys(d for _, data in known for d in data))
    raise BadInput(f"--recipe published: method {method} was published on {having}, not {data_set}: leave it out")


def rows() -> list[dict[str, str]]:
    """The table in words, for docs."""
    found = []
    for method, data, networks, recipe in TABLE:
        flags = {name: value for name, value in recipe.flags.items() if name not in ("num_epochs", "finetune_epochs")}
        epochs = [f"{recipe.flags[n]} {what}" for n, what in (("num_epochs", "before"), ("finetune_epochs", "after"))
                  if n in recipe.flags]  # fmt: skip
        numbers = {**recipe.numbers, **{f"{name} (unscaled)": value for name, value in recipe.whole.items()}}
        found.append({
            "method": method,
            "data": ", ".join(data),
            "networks": "all" if networks == ANY else networks,
            "epochs": ", ".join(epochs),
            "flags": flags_in_words(flags),
            "--set": " ".join(f"{name}={value:.4g}" for name, value in numbers.items()),
            "differs": recipe.differs,
        })  # fmt: skip
    return found


def flags_in_words(flags: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {_typed(value)}".strip() for name, value in flags.items())


def _typed(value: Any) -> str:
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if value != str(value) else value
