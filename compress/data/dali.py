"""Large images decoded by NVIDIA DALI: the images, order, crops and mirroring of Folder, from the same functions.

A JPEG is decoded only where the crop lies. On a CPU torch resizes, as for Folder: that is faster there than DALI's own
resizing (docs/benchmarks/2026-11-26-loaders.md), and pixels are Folder's, except where that has PIL decode a large
photograph at a fraction of its size. On a GPU DALI does it all, and its decoder and its resizing round otherwise.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kerf.compress.data.batches import WHOLE, Part, normalise
from kerf.compress.data.images import opened, rgb
from kerf.compress.data.photographs import Files, centred, crop_box, evaluation_size, resized
from kerf.errors import BadInput

try:
    from nvidia.dali import Pipeline, fn, types
except ImportError as error:
    raise ImportError(
        f"--use_dali needs NVIDIA DALI ({error}): pip install '.[dali]', or leave --use_dali out"
    ) from None


AHEAD = 1  # batches in the making while one is used, behind those that DALI decodes
TURN = 10  # images that a thread reads, or resizes, without asking for more


@dataclass(frozen=True)
class Sample:
    index: int
    content: np.ndarray  # the file, uint8
    box: tuple[float, float, float, float]  # left, top, width, height of what is resized to the output
    mirror: bool


@dataclass(frozen=True, eq=False)
class Dali(Files):
    """Decoded in `workers` threads, at least one. `device` "cuda:0" decodes and resizes there; its batches stay there.

    `own_resizing`: by DALI, not by torch. Raises ValueError for files that are no images, as Files has it.
    """

    device: str = "cpu"
    own_resizing: bool = False

    def epoch(self, epoch: int = 0, seed: int = 0, part: Part = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        ahead: deque[tuple[Callable[[], Tensor], Tensor]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for images, samples in self._decoded(self.batches(epoch, seed, part), epoch, seed, pool):
                ahead.append((self._batch(images, samples, pool), self.labels([sample.index for sample in samples])))
                if len(ahead) > AHEAD:
                    batch, labels = ahead.popleft()
                    yield batch(), labels
            for batch, labels in ahead:
                yield batch(), labels

    def _decoded(
        self, batches: list[list[int]], epoch: int, seed: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Any, list[Sample]]]:
        """DALI's output for every batch. It stays as it is while something refers to it."""
        first = 0
        while first < len(batches):
            sent: deque[tuple[int, list[Sample]]] = deque()  # what DALI has, ahead of the batch it returns
            pipeline = self._pipeline(self._inputs(batches, first, epoch, seed, sent, pool))
            first = len(batches)
            while True:
                try:
                    (images,) = pipeline.run()
                except StopIteration:
                    break
                except RuntimeError as error:
                    # one undecodable file fails its batch, and DALI does not say which: find it, go on without it
                    self._find_undecodable([sample for _, samples in sent for sample in samples], error)
                    first = sent[0][0]
                    break
                yield images, sent.popleft()[1]

    @property
    def _threads(self) -> int:
        return max(1, self.workers)

    @cached_property
    def _seen(self) -> np.ndarray:
        """(images, 3): width and height of the files read so far, 0 before; 1 for those that DALI decodes."""
        return np.zeros((len(self.names), 3), np.int32)

    def _path(self, index: int) -> Path:
        return self.listing.root / self.names[index]

    def _inputs(
        self,
        batches: list[list[int]],
        first: int,
        epoch: int,
        seed: int,
        sent: deque[tuple[int, list[Sample]]],
        pool: ThreadPoolExecutor,
    ) -> Iterator[tuple[list[np.ndarray], ...]]:
        """The batches from `first` on, as DALI takes them: a list of every array of their samples."""
        for position, batch in enumerate(batches[first:], first):
            samples: list[Sample] = []
            parts = [[batch[at] for at in places] for places in turns(len(batch))]
            for found in pool.map(self._samples, parts, repeat(epoch), repeat(seed)):
                for sample, failed in found:
                    for index, why in failed:
                        self.leave_out(index, why)
                    if sample:
                        samples.append(sample)
            self.check(len(batch), len(samples))
            if samples:
                sent.append((position, samples))
                yield tuple(map(list, zip(*map(self._arrays, samples))))

    def _samples(self, places: list[int], epoch: int, seed: int) -> list[tuple[Sample | None, list[tuple[int, str]]]]:
        return [self._sample(place, epoch, seed) for place in places]

    def _sample(self, place: int, epoch: int, seed: int) -> tuple[Sample | None, list[tuple[int, str]]]:
        """What is decoded for a place in a batch, and indices and errors of files that could not be read for it."""
        failed: list[tuple[int, str]] = []
        for index, random in self.candidates(place, epoch, seed):
            if index in self.unreadable:
                continue
            try:
                content = self._read(index)
            except ValueError as error:
                failed.append((index, str(error)))
                if self.bad_images == "fatal":
                    break
                continue
            width, height, _ = self._seen[index].tolist()
            if self.training:
                left, top, w, h, mirror = crop_box(width, height, random)
                return Sample(index, content, (left, top, w, h), mirror), failed
            if self.own_resizing:
                return Sample(index, content, centre_box(width, height, self.image_size), False), failed
            return Sample(index, content, (0, 0, width, height), False), failed
        return None, failed

    def _read(self, index: int) -> np.ndarray:
        """The bytes of a JPEG; other images as a bitmap, decoded by PIL: grey, palettes, alpha and CMYK as there.

        Raises ValueError naming the file, also for a JPEG cut short, of which DALI would decode the beginning.
        """
        path = self._path(index)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read as an image: {error}") from None
        if not self._seen[index, 2]:
            with opened(path, content) as image:
                jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
                if not jpeg:
                    content = b"P6 %d %d 255\n" % image.size + rgb(image).tobytes()
                elif b"\xff\xd9" not in content[-64:]:  # the end marker
                    image.load()  # some whole files have more behind it: PIL decides
                self._seen[index] = *image.size, jpeg
        return np.frombuffer(content, np.uint8)

    def _arrays(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """The file; (top, left) and (height, width) where only that is taken; 0 or 1 where DALI mirrors."""
        left, top, width, height = sample.box
        arrays = [sample.content]
        if self.training or self.own_resizing:
            arrays += [np.array([top, left], np.float32), np.array([height, width], np.float32)]
        if self.training and self.own_resizing:
            arrays.append(np.array(sample.mirror, np.int32))
        return tuple(arrays)

    def _pipeline(self, source: Iterator[tuple[list[np.ndarray], ...]], batch: int | None = None) -> Pipeline:
        """Bytes to (h, w, 3) uint8: the parts of images that the samples name, or with own_resizing the output."""
        device = torch.device(self.device)
        on_gpu = device.type == "cuda"
        pipeline = Pipeline(
            batch_size=batch or self.size,
            num_threads=self._threads,
            device_id=(device.index or 0) if on_gpu else None,
        )
        # As PIL decodes: chroma interpolated, orientation tags ignored.
        decoding: dict[str, Any] = {
            "device": "mixed" if on_gpu else "cpu",
            "adjust_orientation": False,
            "jpeg_fancy_upsampling": True,
        }
        resizing = {"size": [self.image_size] * 2, "interp_type": types.INTERP_LINEAR, "antialias": True}
        with pipeline:
            count = 1 + 2 * (self.training or self.own_resizing) + (self.training and self.own_resizing)
            data, *region = fn.external_source(
                source,
                num_outputs=count,
                dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.INT32][:count],
                ndim=[1, 1, 1, 0][:count],
            )
            if self.training:
                start, shape, *mirror = region
                absolute = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
                images = fn.decoders.image_slice(data, start, shape, **absolute, **decoding)
                if self.own_resizing:
                    images = fn.flip(fn.resize(images, **resizing), horizontal=mirror[0])
            else:
                images = fn.decoders.image(data, **decoding)
                if self.own_resizing:
                    start, shape = region
                    images = fn.resize(images, roi_start=start, roi_end=start + shape, **resizing)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _batch(self, images: Any, samples: list[Sample], pool: ThreadPoolExecutor) -> Callable[[], Tensor]:
        """Starts to make (b, 3, s, s) f32 of DALI's output; the call waits for it."""
        if self.own_resizing:
            whole = normalise(torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2))
            if whole.is_cuda:
                torch.cuda.current_stream(whole.device).synchronize()  # DALI's memory is free again when this returns
            return lambda: whole
        side = self.image_size
        # Memory of torch: numpy asks for huge pages, and waiting for those took a quarter of the loader's time.
        batch = torch.empty(len(samples), side, side, 3)
        array = batch.numpy()  # inference mode, which this thread may be in, is not that of the pool's threads

        def fill(places: range) -> None:
            pixels = torch.empty(len(places), side, side, 3, dtype=torch.uint8)
            for to, at in enumerate(places):
                image = torch.from_dlpack(images[at])
                image = resized(image, side, side) if self.training else centred(image, side)
                pixels[to] = image.flip(1) if samples[at].mirror else image
            torch.from_numpy(array[places.start : places.stop]).copy_(
                normalise(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            )

        parts = [pool.submit(fill, places) for places in turns(len(samples))]

        def wait() -> Tensor:
            for part in parts:
                part.result()
            return batch.permute(0, 3, 1, 2)

        return wait

    def _find_undecodable(self, samples: list[Sample], error: RuntimeError) -> None:
        """Leaves out those that DALI cannot decode alone. Raises ValueError when it decodes them all."""
        found = False
        for sample in samples:
            try:
                self._pipeline(iter([tuple([array] for array in self._arrays(sample))]), 1).run()
            except RuntimeError as alone:
                found = True
                why = next((line for line in str(alone).splitlines() if "rror" in line), "undecodable")
                self.leave_out(sample.index, f"{self._path(sample.index)} cannot be read as an image by DALI: {why}")
        if not found:
            raise BadInput(f"DALI failed on a batch of images that it decodes one by one: {error}") from None


def turns(count: int) -> list[range]:
    """Places in a batch that one thread does in a turn."""
    return [range(first, min(first + TURN, count)) for first in range(0, count, TURN)]


def centre_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Left, top, width and height, in pixels of the whole image, of what evaluation cuts after resizing."""
    to_width, to_height = evaluation_size(width, height, size)
    x, y = width / to_width, height / to_height
    return round((to_width - size) / 2) * x, round((to_height - size) / 2) * y, size * x, size * y
