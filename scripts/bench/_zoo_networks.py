"""The networks that zoo.py races, each as something that writes an .onnx file. Not a script itself.

Packages are imported when a network is made: one that is missing costs its own networks only, and torch is in no other
process. Weights are random, batch norms calibrated; PP-OCR's are its own.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from typing import Any

Make = Callable[[Path, tuple[int, ...]], None]


@dataclass(frozen=True)
class Source:
    """``write(path, shape)`` makes the file; ``shape`` is that of its only input."""

    write: Make
    shape: tuple[int, ...]


def exported(module: Any, path: Path, shape: tuple[int, ...]) -> None:
    """By kerf.export, batch norms calibrated."""
    import torch

    from kerf import zoo
    from kerf.deploy.export import export

    torch.manual_seed(0)
    zoo.calibrate(module, torch.randn(2, *shape[1:]))
    export(module, torch.randn(shape), path)


def torchvision(name: str, **options: Any) -> Make:
    def write(path: Path, shape: tuple[int, ...]) -> None:
        from torchvision.models import get_model

        exported(get_model(name, weights=None, **options), path, shape)

    return write


def timm(name: str) -> Make:
    """As it is deployed: branches that training alone has are folded."""

    def write(path: Path, shape: tuple[int, ...]) -> None:
        import timm
        from timm.utils.model import reparameterize_model

        exported(reparameterize_model(timm.create_model(name, pretrained=False).eval()), path, shape)

    return write


def own(name: str) -> Make:
    def write(path: Path, shape: tuple[int, ...]) -> None:
        import _zoo_modules

        exported(getattr(_zoo_modules, name)(), path, shape)

    return write


def ssdlite(wrapper: str) -> Make:
    def write(path: Path, shape: tuple[int, ...]) -> None:
        import _zoo_modules
        from torchvision.models.detection import ssdlite320_mobilenet_v3_large

        detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        exported(getattr(_zoo_modules, wrapper)(detector), path, shape)

    return write


def ultralytics(name: str) -> Make:
    """By its own exporter, which would install packages."""

    def write(path: Path, shape: tuple[int, ...]) -> None:
        os.environ["YOLO_AUTOINSTALL"] = "false"
        import torch
        from ultralytics import YOLO

        from kerf import zoo

        torch.manual_seed(0)
        yolo = YOLO(f"{name}.yaml")
        zoo.calibrate(yolo.model, torch.randn(2, *shape[1:]))
        yolo.model.pt_path = str(path.with_suffix(".pt"))  # where its weights would lie: the file comes beside them
        made = Path(yolo.export(format="onnx", imgsz=shape[2:], simplify=False, verbose=False))
        if made != path:
            made.replace(path)

    return write


def pp_ocr(name: str) -> Make:
    """A file that rapidocr-onnxruntime ships."""

    def write(path: Path, shape: tuple[int, ...]) -> None:
        copyfile(str(files("rapidocr_onnxruntime") / "models" / name), path)

    return write


IMAGE = (1, 3, 224, 224)
NO_WEIGHTS = {"weights_backbone": None}
NETWORKS: dict[str, Source] = {
    "yolov8n": Source(ultralytics("yolov8n"), (1, 3, 640, 640)),
    "yolo11n": Source(ultralytics("yolo11n"), (1, 3, 640, 640)),
    "ssdlite320_mobilenet_v3_large, heads": Source(ssdlite("Heads"), (1, 3, 320, 320)),
    "ssdlite320_mobilenet_v3_large": Source(ssdlite("Detector"), (1, 3, 320, 320)),
    "deeplabv3_mobilenet_v3_large": Source(
        torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True, **NO_WEIGHTS), (1, 3, 520, 520)
    ),
    "lraspp_mobilenet_v3_large": Source(torchvision("lraspp_mobilenet_v3_large", **NO_WEIGHTS), (1, 3, 520, 520)),
    "unet": Source(own("UNet"), (1, 3, 256, 256)),
    "keypoints_resnet18": Source(own("keypoints"), (1, 3, 256, 192)),
    "super_resolution": Source(own("super_resolution"), (1, 1, 224, 224)),
    "pp_ocr_v4_detection": Source(pp_ocr("ch_PP-OCRv4_det_infer.onnx"), (1, 3, 640, 640)),
    "pp_ocr_v4_recognition": Source(pp_ocr("ch_PP-OCRv4_rec_infer.onnx"), (1, 3, 48, 320)),
    "pp_ocr_v2_angle": Source(pp_ocr("ch_ppocr_mobile_v2.0_cls_infer.onnx"), (1, 3, 48, 192)),
    "audio_m5": Source(own("audio"), (1, 1, 16000)),
    **{
        name: Source(torchvision(name), IMAGE)
        for name in (
            "efficientnet_b0", "densenet121", "convnext_tiny", "swin_t", "resnet18", "resnext50_32x4d",
            "regnet_y_400mf", "mnasnet1_0", "shufflenet_v2_x1_0", "squeezenet1_1",
        )
    },
    "googlenet": Source(torchvision("googlenet", aux_logits=False, init_weights=False), IMAGE),
    "inception_v3": Source(torchvision("inception_v3", aux_logits=False, init_weights=False), (1, 3, 299, 299)),
    **{name: Source(timm(name), IMAGE) for name in ("vit_small_patch16_224", "mobilenetv4_conv_small", "repvgg_a0")},
}  # fmt: skip


def write(name: str, path: Path) -> None:
    """Makes ``path``, whole or not at all. Raises ModuleNotFoundError where the network's package is missing."""
    source, part = NETWORKS[name], path.with_name("part.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.write(part, source.shape)
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
