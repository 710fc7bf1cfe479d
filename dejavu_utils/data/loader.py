"""Batches of images: augmented views of a .beton for training, centre crops for evaluation, crops from image files.

CPU threads read, decode, cut and resize; everything else is batched on the device, or done by the threads too where the
device is the CPU.
"""

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from dejavu_utils.data import augment
from dejavu_utils.devices import to_device
from dejavu_utils.randomness import epoch_order, uniforms

_ROWS_A_TASK = 16  # small enough that all threads share the first batch of a run
_BATCHES_AHEAD = 2


class NativeLoader:
    """Random views of the images of a .beton, in an order drawn anew for each epoch.

    beton: dejavu_utils.beton.Beton. batch_size: images of this process. views: list of augment.View. num_workers:
    threads that read, decode and crop. rank, world_size: this process and how many there are; they share every global
    batch of batch_size x world_size images without overlap. Batches depend on (seed, epoch, position in the epoch's
    order) alone, not on num_workers; an incomplete last batch is dropped. ValueError if there is not one whole batch.
    """

    def __init__(self, beton, batch_size, views, seed, num_workers, device, rank=0, world_size=1):
        if len(beton) < batch_size * world_size:
            raise ValueError(f"the batch size is {batch_size * world_size}, but there are only {len(beton)} images")
        self.beton, self.batch_size, self.views, self.seed = beton, batch_size, views, seed
        self.num_workers, self.device, self.rank, self.world_size = num_workers, device, rank, world_size

    def __len__(self):
        """Batches in an epoch."""
        return len(self.beton) // (self.batch_size * self.world_size)

    def epoch(self, epoch, resolution, first_step=0):
        """Yields (views, labels) on the device, from step `first_step` on (those before cost nothing).

        resolution: side of the views that have no side of their own, pixels. views: list of normalized float32 (batch,
        3, side, side). labels: int64 (batch,).
        """
        order = epoch_order(self.seed, epoch, len(self.beton))
        everybody = self.batch_size * self.world_size
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

        def plan(step):
            start = step * everybody
            chosen = order[start : start + everybody][mine]
            parts = []
            for number, view in enumerate(self.views):
                draws = uniforms(self.seed, epoch, number, start, everybody)
                boxes = augment.crop_boxes(draws[mine], self.beton.sizes[chosen], view)
                parts.append((view.side or resolution, boxes, augment.draw_parameters(draws, view)[mine]))
            return chosen, parts

        yield from _batches(self.beton, map(plan, range(first_step, len(self))), self.num_workers, self.device)


def evaluation_batches(beton, batch_size, resolution, num_workers, device, rank=0, world_size=1):
    """Yields (centre crops, labels) of all images in their order, on the device; of every world_size-th batch.

    Crops: the centred 224 / 256 of the short side, normalized float32 (n, 3, resolution, resolution). labels: int64
    (n,).
    """

    def plan(step):
        chosen = np.arange(step * batch_size, min((step + 1) * batch_size, len(beton)))
        return chosen, [(resolution, augment.center_boxes(beton.sizes[chosen]), None)]

    steps = range(rank, -(-len(beton) // batch_size), world_size)
    for views, labels in _batches(beton, map(plan, steps), num_workers, device):
        yield views[0], labels


def _batches(beton, plans, num_workers, device):
    """Carries out plans, (image indices, [(side, boxes, augment.Parameters or None) of each view]), a few batches
    ahead."""
    on_cpu, own = device.type == "cpu", threading.local()
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(plan):
        chosen, parts = plan
        views = [_empty(len(chosen), side, on_cpu) for side, _, _ in parts]
        tasks = [slice(first, first + _ROWS_A_TASK) for first in range(0, len(chosen), _ROWS_A_TASK)]
        return plan, views, [pool.submit(fill, plan, views, rows) for rows in tasks]

    def fill(plan, views, rows):
        chosen, parts = plan
        crops = [kept(number, view[rows]) if on_cpu else view[rows] for number, view in enumerate(views)]
        boxes_of_views = [boxes[rows].tolist() for _, boxes, _ in parts]
        for row, index in enumerate(chosen[rows]):
            image = torch.from_numpy(beton.read(index))
            for crop, boxes in zip(crops, boxes_of_views):
                crop[row : row + 1].copy_(_resized(image, boxes[row], crop.shape[-1], "bilinear"))
        if on_cpu:
            for view, crop, (_, _, parameters) in zip(views, crops, parts):
                finish(crop, parameters and parameters[rows], view[rows])

    def kept(number, view):
        """The thread's own room for uint8 crops of a view: new memory for each task would have to be cleared."""
        rooms = vars(own).setdefault("rooms", {})
        if number not in rooms or rooms[number].shape[-1] != view.shape[-1]:
            rooms[number] = _crops(_ROWS_A_TASK, view.shape[-1])
        return rooms[number][: len(view)]

    def finish(crop, parameters, out=None):
        return augment.normalize(crop, out) if parameters is None else augment.apply(crop, parameters, out)

    def wait(plan, views, futures):
        for future in futures:
            future.result()
        chosen, parts = plan
        labels = torch.from_numpy(beton.labels[chosen])
        if on_cpu:
            return views, labels
        # Beside the step under way on a GPU, which the host is ahead of; the next step then waits for this batch.
        with torch.cuda.stream(beside):
            views = [
                finish(view.to(device, non_blocking=True), parameters) for view, (_, _, parameters) in zip(views, parts)
            ]
            labels = to_device(labels, device)
        if beside is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_stream(beside)
            for tensor in (*views, labels):
                tensor.record_stream(consumer)  # its memory is not given to the next batch before the step is over
        return views, labels

    # Each thread works on images of its own: PyTorch must not start threads in it. The consumer's own number is fixed
    # by asking for it; it would be that of the threads otherwise.
    torch.get_num_threads()
    with ThreadPoolExecutor(max(1, num_workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        under_way = deque()
        try:
            for plan in plans:
                under_way.append(start(plan))
                if len(under_way) > _BATCHES_AHEAD:
                    yield wait(*under_way.popleft())
            while under_way:
                yield wait(*under_way.popleft())
        finally:  # the consumer has stopped early, or a thread has failed
            for _, _, futures in under_way:
                for future in futures:
                    future.cancel()


def _empty(n, side, finished):
    """The tensor of a view: float32 where the threads finish it, else uint8 crops that go to the device."""
    if finished:
        # NumPy asks for huge pages: filling new memory takes a sixth of the time.
        return torch.from_numpy(np.empty((n, 3, side, side), np.float32))
    return _crops(n, side, pin=torch.cuda.is_available())


def _crops(n, side, pin=False):
    return torch.empty((n, 3, side, side), dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=pin)


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
