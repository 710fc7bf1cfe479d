"""Batches of images: augmented views of a .beton for training, centre crops for evaluation, crops
from image files.

Workers read, decode, cut and resize, a few batches ahead. For a CPU they augment, too, and write
the views into shared memory; for a GPU they hand over pixels, and it augments whole batches.
Threads would take turns at the interpreter, with each other and with the one that starts the GPU's
kernels: two are little faster than one.
"""

import functools
import itertools
import math
import operator
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dejavu_utils.data import augment
from dejavu_utils.data.beton import Beton
from dejavu_utils.data.workers import batches, workers_that_fit_shared_memory
from dejavu_utils.randomness import DRAWS, epoch_order, uniforms
from dejavu_utils.runtime.devices import one_thread, to_device

# Index of each image, and of each view side, boxes and parameters.
Plan = tuple[np.ndarray, list[tuple[int, np.ndarray, augment.Parameters]]]
Batches = Generator[tuple[list[Tensor], Tensor], None, None]  # of views and labels
_FLAG = "--data.num_workers"
_ROWS, _ROWS_GPU = 16, 64  # images per worker item: large enough to amortize the transfer


@dataclass(frozen=True)
class Batching:
    """The part of the batches that a process loads. batch_size: images of this process.
    num_workers: workers; 0: this process loads. device: where batches go. rank, world_size: this
    process and how many there are; they share every global batch of batch_size x world_size images
    without overlap."""

    batch_size: int
    num_workers: int
    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def steps(self, beton: Beton) -> int:
        """Whole global batches in an epoch; ValueError if there is not one."""
        if len(beton) < self.global_batch:
            raise ValueError(
                f"the batch size is {self.global_batch}, but there are only {len(beton)} images"
            )
        return len(beton) // self.global_batch


class _Prefetcher:
    """Batches that are prefetched until this is closed, or another place is asked for.

    plans: place -> iterator over the Plans from there on, the same each time, without end; must not
    reference the loader: in a reference cycle the workers would be shut down by the garbage
    collector, possibly while a lock they need is held.
    """

    def __init__(self, beton: Beton, batching: Batching, plans: Callable) -> None:
        load = _for_a_cpu if batching.device.type == "cpu" else _for_a_gpu
        self._start = lambda place: load(beton, batching, functools.partial(plans, place))
        self._batches: Generator | None = None
        self._place: Any = None

    def next(self, place: Any, following: Any) -> tuple[list[Tensor], Tensor]:
        """The batch at a place; `following`: the place that is most likely asked for next."""
        if self._batches is None or self._place != place:
            self.close()
            self._batches = self._start(place)
        self._place = None  # should it fail
        batch = next(self._batches)
        self._place = following
        return batch

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()
        self._batches = self._place = None


class NativeLoader:
    """Random views of the images of a .beton, in an order drawn anew for each epoch.

    Batches depend on (seed, epoch, position in the epoch's order) alone, not on num_workers; an
    incomplete last batch is dropped. ValueError if there is not one whole batch.
    """

    def __init__(
        self, beton: Beton, batching: Batching, views: list[augment.View], seed: int
    ) -> None:
        self._steps = batching.steps(beton)
        plans = functools.partial(_random_plans, beton, batching, views, seed)
        self._prefetcher = _Prefetcher(beton, batching, plans)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, resolution: int, first_step: int = 0) -> Batches:
        """Yields (views, labels) on the device, from step `first_step` on (those before cost
        nothing).

        resolution: side of the views that have no side of their own, pixels. views: list of
        normalized float32 (batch, 3, side, side). labels: int64 (batch,). Prefetching continues
        into the next epoch: if that has the same resolution, its first batches are ready.
        """
        for step in range(first_step, len(self)):
            is_last = step + 1 == len(self)
            following = (epoch + 1, 0) if is_last else (epoch, step + 1)
            yield self._prefetcher.next((resolution, epoch, step), (resolution, *following))

    def close(self) -> None:
        """Ends the prefetching, until the next batch is asked for."""
        self._prefetcher.close()


def _random_plans(
    beton: Beton,
    batching: Batching,
    views: list[augment.View],
    seed: int,
    start: tuple[int, int, int],
) -> Iterator[Plan]:
    """Yields the plans of the batches from a step of an epoch on, without end. start: (resolution,
    epoch, step)."""
    resolution, epoch, first_step = start
    mine = slice(batching.rank * batching.batch_size, (batching.rank + 1) * batching.batch_size)
    while True:
        order = epoch_order(seed, epoch, len(beton))
        for step in range(first_step, batching.steps(beton)):
            first = step * batching.global_batch
            chosen = order[first : first + batching.global_batch][mine]
            parts = []
            for number, view in enumerate(views):
                draws = uniforms(seed, epoch, number, first, batching.global_batch)
                boxes = augment.crop_boxes(draws[mine], beton.sizes[chosen], view)
                # of the global batch, which has one blur
                parameters = augment.draw_parameters(draws, view)[mine]
                parts.append((view.side or resolution, boxes, parameters))
            yield chosen, parts
        epoch += 1
        first_step = 0


class EvaluationLoader:
    """Centre crops of all images of a .beton in their order, of every world_size-th batch; to be
    gone through often.

    Crops: the centred 224 / 256 of the short side. resolution: side, pixels. in_all: number of
    batches that every process has.
    """

    def __init__(self, beton: Beton, batching: Batching, resolution: int) -> None:
        batch_count = math.ceil(len(beton) / batching.batch_size)
        self.in_all = batch_count // batching.world_size
        self._own = range(batching.rank, batch_count, batching.world_size)
        plans = functools.partial(_centre_plans, beton, batching.batch_size, resolution, self._own)
        self._prefetcher = _Prefetcher(beton, batching, plans)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (crops, labels) on the device: normalized float32 (n, 3, resolution, resolution),
        int64 (n,). Prefetching continues from the start for the next pass."""
        for step in range(len(self._own)):
            (crops,), labels = self._prefetcher.next(step, (step + 1) % len(self._own))
            yield crops, labels


def _centre_plans(
    beton: Beton, batch_size: int, resolution: int, own: range, start: int
) -> Iterator[Plan]:
    """Yields the plans of the evaluation's batches from the start-th of this process on, round and
    round.

    own: numbers of this process's batches.
    """
    for step in itertools.chain(own[start:], itertools.cycle(own)):
        chosen = np.arange(step * batch_size, min((step + 1) * batch_size, len(beton)))
        nothing = augment.draw_parameters(np.zeros((len(chosen), DRAWS)), augment.PLAIN_VIEW)
        yield chosen, [(resolution, augment.center_boxes(beton.sizes[chosen]), nothing)]


def _for_a_cpu(beton: Beton, batching: Batching, plans: Callable) -> Batches:
    """Workers write augmented views into a ring of shared-memory buffers; the main process copies
    each into the batch.

    A worker has at most `prefetch` items ready or in work, and one is being copied: a buffer is
    used again after all of them. Shared memory that is new for each item would be slower by half,
    since the system has to fill it twice.
    """
    _, parts = next(plans())
    sides = [side for side, _, _ in parts]
    item_bytes = _ROWS * sum(3 * side * side * 4 for side in sides)  # float32
    workers, prefetch = workers_that_fit_shared_memory(item_bytes, batching.num_workers, _FLAG)
    ring = workers * prefetch + 2
    buffers = [torch.zeros(ring, _ROWS, 3, side, side) for side in sides]
    if workers:
        for buffer in buffers:
            buffer.share_memory_()
    tasks = _Tasks(plans, _ROWS, itertools.cycle(range(ring)))
    dataset = _SharedBuffers(beton, buffers)
    first_item = operator.itemgetter(0)
    filled = batches(dataset, tasks, workers, batching.device, first_item, _FLAG, prefetch)
    pools = [_BufferPool(side) for side in sides]
    for chosen, _ in plans():
        # NumPy copies in this thread alone: PyTorch's would wait for each other, and for the cores
        # that processes use.
        views = [pool(len(chosen)) for pool in pools]
        for first in range(0, len(chosen), _ROWS):
            number, count = next(filled)
            for view, buffer in zip(views, buffers):
                view[first : first + count] = buffer[number, :count].numpy()
        yield [torch.from_numpy(view) for view in views], torch.from_numpy(beton.labels[chosen])


def _for_a_gpu(beton: Beton, batching: Batching, plans: Callable) -> Batches:
    """Workers hand over uint8 crops, in page-locked memory; the GPU augments batch after batch."""
    device = batching.device
    tasks = _Tasks(plans, _ROWS_GPU)
    read = batches(_Crops(beton), tasks, batching.num_workers, device, flag=_FLAG)
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for chosen, parts in plans():
        items = [next(read) for _ in range(0, len(chosen), _ROWS_GPU)]
        # Beside the step under way on the GPU, which the host is ahead of; the next step then waits
        # for this batch.
        with torch.cuda.stream(beside):
            views = []
            for crops_of_items, (_, _, parameters) in zip(zip(*items), parts):
                on_device = [crops.to(device, non_blocking=True) for crops in crops_of_items]
                crops = torch.cat(on_device).permute(0, 3, 1, 2)
                views.append(augment.apply(crops, parameters))
            labels = to_device(torch.from_numpy(beton.labels[chosen]), device)
        if beside is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_stream(beside)
            for tensor in (*views, labels):
                # its memory is not given to the next batch before the step is over
                tensor.record_stream(consumer)
        yield views, labels


@dataclass
class _BufferPool:
    """Pool of batch buffers; one is reused once its last batch is garbage-collected (fresh pages
    have to be zeroed)."""

    side: int
    free: list[np.ndarray] = field(default_factory=list)

    def __call__(self, count: int) -> np.ndarray:
        """float32 (count, 3, side, side), of any values. Tensors that share it keep it."""
        whole = self.free.pop() if self.free else None
        if whole is None or len(whole) < count:
            whole = np.empty((count, 3, self.side, self.side), np.float32)
        part = whole[:count]
        weakref.finalize(part, self.free.append, whole).atexit = False
        return part


@dataclass
class _Tasks:
    """What a worker does at a time: a list with, for each of some images, (its index, [(side, box,
    augment.Drawn) of each view]).

    rows: images of a task, of one batch. buffers: numbers of the buffers to write to; tasks are
    [(number, list)] then.
    """

    plans: Callable[[], Iterator]
    rows: int
    buffers: Iterator[int] | None = None

    def __iter__(self) -> Iterator[list]:
        for chosen, parts in self.plans():
            of_views = []
            for side, boxes, parameters in parts:
                of_views.append(zip(itertools.repeat(side), boxes.tolist(), parameters.rows()))
            images = list(zip(chosen.tolist(), zip(*of_views)))
            for first in range(0, len(images), self.rows):
                task = images[first : first + self.rows]
                # _Crops reads image by image, _SharedBuffers a whole task at once
                yield [(next(self.buffers), task)] if self.buffers else task


@dataclass
class _Crops:
    """A data set: (image index, [(side, box, ...) of each view]) -> uint8 (side, side, 3) crops."""

    beton: Beton

    def __getitem__(self, task: tuple) -> list[Tensor]:
        index, views = task
        image = self.beton.read(index)
        return [cut_and_resize(image, box, side)[0].permute(1, 2, 0) for side, box, _ in views]


@dataclass
class _SharedBuffers:
    """A data set: (number of a buffer, images of a task) -> (that number, how many images the
    buffer holds now).

    buffers: of each view, float32 (ring, rows, 3, side, side), for augmented and normalized images.
    """

    beton: Beton
    buffers: list[Tensor]

    def __getitem__(self, task: tuple) -> tuple[int, int]:
        number, images = task
        with one_thread():
            for row, (index, views) in enumerate(images):
                image = self.beton.read(index)
                for buffer, (side, box, drawn) in zip(self.buffers, views):
                    crop = cut_and_resize(image, box, side)
                    augment.apply_to_one(crop, drawn, buffer[number, row : row + 1])
        return number, len(images)


def cut_and_resize(
    image: np.ndarray, box: Sequence[int], side: int, mode: str = "bilinear"
) -> Tensor:
    """The part `box` of an image at side x side pixels, with antialiasing, as torchvision's
    resized_crop does.

    image: uint8 (height, width, 3). box: xmin, ymin, xmax, ymax in pixels. mode: bilinear or
    bicubic. Returns uint8 (1, 3, side, side), channels last.

    The cut is one view of the image whose strides are plainly channels last, that of the batch
    included: PyTorch then reads it, and writes the result, without turning the pixels to channels
    first and back, which takes half the time.
    """
    pixels = torch.from_numpy(image)
    xmin, ymin, xmax, ymax = box
    row, column, channel = pixels.stride()
    start = pixels.storage_offset() + ymin * row + xmin * column
    cut = pixels.as_strided(
        (1, 3, ymax - ymin, xmax - xmin), (len(image) * row, channel, row, column), start
    )
    return F.interpolate(cut, size=(side, side), mode=mode, antialias=True)


def random_crop(
    image: np.ndarray, draws: np.ndarray, view: augment.View, side: int, mode: str
) -> Tensor:
    """The crop of an image that a view draws, resized: uint8 (1, 3, side, side). image, mode: as
    `cut_and_resize` takes them. draws: float64 (1, 64) of randomness.uniforms, of which
    augment.draw_parameters takes the rest."""
    [box] = augment.crop_boxes(draws, [image.shape[:2]], view).tolist()
    return cut_and_resize(image, box, side, mode)
