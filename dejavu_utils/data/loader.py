"""Batches of images: augmented views of a .beton for training, centre crops for evaluation, crops from image files.

CPU threads read, decode, cut and resize; everything else is batched on the device, or done by the threads too where the
device is the CPU.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from dejavu_utils.data import augment
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
    on_cpu = device.type == "cpu"

    def start(plan):
        chosen, parts = plan
        views = [_empty(len(chosen), side, on_cpu) for side, _, _ in parts]
        tasks = [slice(first, first + _ROWS_A_TASK) for first in range(0, len(chosen), _ROWS_A_TASK)]
        return plan, views, [pool.submit(fill, plan, views, rows) for rows in tasks]

    def fill(plan, views, rows):
        chosen, parts = plan
        crops = [_crops(len(chosen[rows]), side) if on_cpu else view[rows] for view, (side, _, _) in zip(views, parts)]
        for row, index in enumerate(chosen[rows]):
            image = beton.read(index)
            for crop, (side, boxes, _) in zip(crops, parts):
                crop[row] = cut_and_resize(image, boxes[rows][row], side)
        if on_cpu:
            for view, crop, (_, _, parameters) in zip(views, crops, parts):
                finish(crop, parameters and parameters[rows], view[rows])

    def finish(crop, parameters, out=None):
        return augment.normalize(crop, out) if parameters is None else augment.apply(crop, parameters, out)

    def wait(plan, views, futures):
        for future in futures:
            future.result()
        chosen, parts = plan
        if not on_cpu:
            views = [
                finish(view.to(device, non_blocking=True), parameters and parameters.to(device))
                for view, (_, _, parameters) in zip(views, parts)
            ]
        return views, torch.from_numpy(beton.labels[chosen]).to(device, non_blocking=True)

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
    return torch.empty(n, 3, side, side) if finished else _crops(n, side, pin=torch.cuda.is_available())


def _crops(n, side, pin=False):
    return torch.empty((n, 3, side, side), dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=pin)


def cut_and_resize(image, box, side, mode="bilinear"):
    """The part `box` of an image at side x side pixels, with antialiasing, as torchvision's resized_crop does.

    image: uint8 (height, width, 3) NumPy array. box: xmin, ymin, xmax, ymax in pixels. mode: bilinear or bicubic.
    Returns uint8 (3, side, side).
    """
    xmin, ymin, xmax, ymax = box
    cut = torch.from_numpy(image[ymin:ymax, xmin:xmax]).permute(2, 0, 1)[None]
    return F.interpolate(cut, size=(side, side), mode=mode, antialias=True)[0]
