"""Batches of images: augmented views of a .beton for training, centre crops for evaluation, crops from image files.

On CPUs threads read, decode, cut, resize and augment, a few batches ahead. For a GPU processes read, cut and resize
(data/readers.py), and the GPU augments whole batches: threads would take turns at the interpreter with the one that
starts the GPU's kernels, and all would wait.
"""

import functools
import itertools
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from dejavu_utils.data import augment
from dejavu_utils.data.readers import batches
from dejavu_utils.devices import to_device
from dejavu_utils.randomness import epoch_order, uniforms

_ROWS_A_TASK = 16  # of a thread: small enough that all threads share the first batch of a run
_ROWS_A_MESSAGE = 64  # of a process: large enough that handing over costs little
_BATCHES_AHEAD = 2


class NativeLoader:
    """Random views of the images of a .beton, in an order drawn anew for each epoch.

    beton: dejavu_utils.data.beton.Beton. batch_size: images of this process. views: list of augment.View. num_workers:
    that read, decode and crop: threads on a CPU, processes for a GPU (or where by_processes is set to True). rank,
    world_size: this process and how many there are; they share every global batch of batch_size x world_size images
    without overlap. Batches depend on (seed, epoch, position in the epoch's order) alone, not on num_workers; an
    incomplete last batch is dropped. ValueError if there is not one whole batch.
    """

    def __init__(self, beton, batch_size, views, seed, num_workers, device, rank=0, world_size=1):
        if len(beton) < batch_size * world_size:
            raise ValueError(f"the batch size is {batch_size * world_size}, but there are only {len(beton)} images")
        self.beton, self.batch_size, self.views, self.seed = beton, batch_size, views, seed
        self.num_workers, self.device, self.rank, self.world_size = num_workers, device, rank, world_size
        self.by_processes = device.type != "cpu"
        self._stream, self._next = None, None  # batches under way, and the (resolution, epoch, step) of the next

    def __len__(self):
        """Batches in an epoch."""
        return len(self.beton) // (self.batch_size * self.world_size)

    def epoch(self, epoch, resolution, first_step=0):
        """Yields (views, labels) on the device, from step `first_step` on (those before cost nothing).

        resolution: side of the views that have no side of their own, pixels. views: list of normalized float32 (batch,
        3, side, side). labels: int64 (batch,). Reading goes on into the next epoch: if that has the same resolution,
        its first batches are there already.
        """
        for step in range(first_step, len(self)):
            if self._next != (resolution, epoch, step):
                self.close()
                place, start = (self.rank, self.world_size), (resolution, epoch, step)
                plans = functools.partial(_plans, self.beton, self.batch_size, self.views, self.seed, place, start)
                self._stream = _batches(self.beton, plans, self.num_workers, self.device, self.by_processes)
            self._next = None  # should it fail
            batch = next(self._stream)
            self._next = (resolution, epoch, step + 1) if step + 1 < len(self) else (resolution, epoch + 1, 0)
            yield batch

    def close(self):
        """Ends the reading ahead, until the next batch is asked for."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._next = None


def _plans(beton, batch_size, views, seed, place, start):
    """Yields the plans of the batches from a step of an epoch on, without end.

    place: (rank, world_size). start: (resolution, epoch, step). Must not refer to the loader: a cycle would leave the
    end of its threads to the garbage collector, which may run while a lock is held that this takes.
    """
    (rank, world_size), (resolution, epoch, first_step) = place, start
    everybody = batch_size * world_size
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    for number in itertools.count(epoch):
        order = epoch_order(seed, number, len(beton))
        for step in range(first_step if number == epoch else 0, len(beton) // everybody):
            first = step * everybody
            chosen = order[first : first + everybody][mine]
            parts = []
            for position, view in enumerate(views):
                draws = uniforms(seed, number, position, first, everybody)
                boxes = augment.crop_boxes(draws[mine], beton.sizes[chosen], view)
                parts.append((view.side or resolution, boxes, augment.draw_parameters(draws, view)[mine]))
            yield chosen, parts


def evaluation_batches(beton, batch_size, resolution, num_workers, device, rank=0, world_size=1):
    """Yields (centre crops, labels) of all images in their order, on the device; of every world_size-th batch.

    Crops: the centred 224 / 256 of the short side, normalized float32 (n, 3, resolution, resolution). labels: int64
    (n,).
    """

    def plans():
        for step in range(rank, -(-len(beton) // batch_size), world_size):
            chosen = np.arange(step * batch_size, min((step + 1) * batch_size, len(beton)))
            yield chosen, [(resolution, augment.center_boxes(beton.sizes[chosen]), None)]

    for views, labels in _batches(beton, plans, num_workers, device, device.type != "cpu"):
        yield views[0], labels


def _batches(beton, plans, num_workers, device, by_processes):
    """Yields (views, labels) on the device, read a few batches ahead.

    plans: function that returns an iterator of (image indices, [(side, boxes, augment.Parameters or None) of each
    view]), the same each time.
    """
    if not by_processes:
        for (chosen, _), views in _by_threads(beton, plans(), num_workers):
            yield views, torch.from_numpy(beton.labels[chosen])
        return
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for (chosen, parts), views in _by_processes(beton, plans, num_workers, device):
        # Beside the step under way on the GPU, which the host is ahead of; the next step then waits for this batch.
        with torch.cuda.stream(beside):
            views = [
                _finish(torch.cat([crops.to(device, non_blocking=True) for crops in pieces]), parameters)
                for pieces, (_, _, parameters) in zip(views, parts)
            ]
            labels = to_device(torch.from_numpy(beton.labels[chosen]), device)
        if beside is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_stream(beside)
            for tensor in (*views, labels):
                tensor.record_stream(consumer)  # its memory is not given to the next batch before the step is over
        yield views, labels


def _finish(crops, parameters, out=None):
    return augment.normalize(crops, out) if parameters is None else augment.apply(crops, parameters, out)


def _by_processes(beton, plans, num_workers, device):
    """Yields each plan with the pieces of its views, uint8 crops in page-locked memory for a GPU."""
    tasks = _Tasks(plans)
    read = batches(_Crops(beton), tasks, num_workers, device, flag="--data.num_workers")
    for chosen, parts in plans():
        pieces = [next(read) for _ in range(0, len(chosen), _ROWS_A_MESSAGE)]
        yield (chosen, parts), [[crops.permute(0, 3, 1, 2) for crops in of_view] for of_view in zip(*pieces)]


class _Tasks:
    """What a process reads at a time: a list with, for each image, (its index, [(side, box) of each view])."""

    def __init__(self, plans):
        self.plans = plans

    def __iter__(self):
        for chosen, parts in self.plans():
            of_views = [[(side, box) for box in boxes.tolist()] for side, boxes, _ in parts]
            images = list(zip(chosen.tolist(), zip(*of_views)))
            for first in range(0, len(images), _ROWS_A_MESSAGE):
                yield images[first : first + _ROWS_A_MESSAGE]


class _Crops:
    """(image index, [(side, box) of each view]) -> uint8 (side, side, 3) crops."""

    def __init__(self, beton):
        self.beton = beton

    def __getitem__(self, task):
        index, views = task
        image = torch.from_numpy(self.beton.read(index))
        return [_resized(image, box, side, "bilinear")[0].permute(1, 2, 0) for side, box in views]


def _by_threads(beton, plans, num_workers):
    """Yields each plan with its views, float32 (n, 3, side, side), augmented and normalized."""
    own = threading.local()

    def start(plan):
        chosen, parts = plan
        # NumPy asks for huge pages: filling new memory takes a sixth of the time.
        views = [torch.from_numpy(np.empty((len(chosen), 3, side, side), np.float32)) for side, _, _ in parts]
        tasks = [slice(first, first + _ROWS_A_TASK) for first in range(0, len(chosen), _ROWS_A_TASK)]
        return plan, views, [pool.submit(fill, plan, views, rows) for rows in tasks]

    def fill(plan, views, rows):
        chosen, parts = plan
        crops = [kept(number, view[rows]) for number, view in enumerate(views)]
        boxes_of_views = [boxes[rows].tolist() for _, boxes, _ in parts]
        for row, index in enumerate(chosen[rows]):
            image = torch.from_numpy(beton.read(index))
            for crop, boxes in zip(crops, boxes_of_views):
                crop[row : row + 1].copy_(_resized(image, boxes[row], crop.shape[-1], "bilinear"))
        for view, crop, (_, _, parameters) in zip(views, crops, parts):
            _finish(crop, parameters and parameters[rows], view[rows])

    def kept(number, view):
        """The thread's own room for uint8 crops of a view: new memory for each task would have to be cleared."""
        rooms = vars(own).setdefault("rooms", {})
        side = view.shape[-1]
        if number not in rooms or rooms[number].shape[-1] != side:
            rooms[number] = torch.empty(
                (_ROWS_A_TASK, 3, side, side), dtype=torch.uint8, memory_format=torch.channels_last
            )
        return rooms[number][: len(view)]

    def done(plan, views, futures):
        for future in futures:
            future.result()
        return plan, views

    # Each thread works on images of its own: PyTorch must not start threads in it. The consumer's own number is fixed
    # by asking for it; it would be that of the threads otherwise.
    torch.get_num_threads()
    with ThreadPoolExecutor(max(1, num_workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        under_way = deque()
        try:
            for plan in plans:
                under_way.append(start(plan))
                if len(under_way) > _BATCHES_AHEAD:
                    yield done(*under_way.popleft())
            while under_way:
                yield done(*under_way.popleft())
        finally:  # the consumer has stopped early, or a thread has failed
            for _, _, futures in under_way:
                for future in futures:
                    future.cancel()


def cut_and_resize(image, box, side, mode="bilinear"):
    """The part `box` of an image at side x side pixels, with antialiasing, as torchvision's resized_crop does.

    image: uint8 (height, width, 3) NumPy array. box: xmin, ymin, xmax, ymax in pixels. mode: bilinear or bicubic.
    Returns uint8 (3, side, side).
    """
    return _resized(torch.from_numpy(image), box, side, mode)[0]


def _resized(image, box, side, mode):
    """uint8 (1, 3, side, side), channels last. image: uint8 tensor (height, width, 3).

    The cut is one view of the image whose strides are plainly channels last, that of the batch included: PyTorch then
    reads it, and writes the result, without turning the pixels to channels first and back, which takes half the time.
    """
    xmin, ymin, xmax, ymax = box
    row, column, channel = image.stride()
    start = image.storage_offset() + ymin * row + xmin * column
    cut = image.as_strided((1, 3, ymax - ymin, xmax - xmin), (len(image) * row, channel, row, column), start)
    return F.interpolate(cut, size=(side, side), mode=mode, antialias=True)
