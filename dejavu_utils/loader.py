"""Batches from a .beton: augmented views for training, centre crops for evaluation.

CPU threads read, decode and crop; everything else is batched on the device.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from dejavu_utils import augment
from dejavu_utils.imagenet import load_image


class NativeLoader:
    """Random views of the images of a .beton, in an order drawn anew for each epoch.

    beton: dejavu_utils.beton.Beton. batch_size: images. views: list of augment.View. num_workers: threads that read,
    decode and crop. Batches depend on (seed, epoch, position in the epoch's order) alone, not on num_workers; an
    incomplete last batch is dropped. ValueError if there is not one whole batch.
    """

    def __init__(self, beton, batch_size, views, seed, num_workers, device):
        if len(beton) < batch_size:
            raise ValueError(f"the batch size is {batch_size}, but there are only {len(beton)} images")
        self.beton, self.batch_size, self.views, self.seed = beton, batch_size, views, seed
        self.num_workers, self.device = max(1, num_workers), device

    def __len__(self):
        """Batches in an epoch."""
        return len(self.beton) // self.batch_size

    def epoch(self, epoch, resolution):
        """Yields (views, labels) on the device.

        views: list of normalized float32 (batch, 3, resolution, resolution). labels: int64 (batch,).
        """
        order = augment.epoch_order(self.seed, epoch, len(self.beton))

        def make(step):
            start = step * self.batch_size
            chosen = order[start : start + self.batch_size]
            draws = [augment.uniforms(self.seed, epoch, v, start, len(chosen)) for v in range(len(self.views))]
            sizes = self.beton.sizes[chosen]
            boxes = [augment.crop_boxes(u, sizes, view) for u, view in zip(draws, self.views)]
            crops = _crop_all(self.beton, chosen, boxes, resolution)
            return crops, [augment.draw_parameters(u, view) for u, view in zip(draws, self.views)], chosen

        for crops, parameters, chosen in _ahead(make, len(self), self.num_workers):
            views = [
                augment.apply(crop.to(self.device, non_blocking=True), p.to(self.device))
                for crop, p in zip(crops, parameters)
            ]
            yield views, torch.from_numpy(self.beton.labels[chosen]).to(self.device, non_blocking=True)


class RandomCrops(torch.utils.data.Dataset):
    """Random crops from image files, in an epoch's order: (uint8 (3, resolution, resolution), label) each.

    listing: dejavu_utils.imagenet.ImageListing. indices: int64 (n,), the images. view: augment.View, of which the crop
    is done here (bicubic); the rest is augment.apply's, with the numbers of augment.uniforms(seed, epoch, STREAM,
    position, ...). An item depends on (seed, epoch, position) alone, not on the number of workers.
    """

    STREAM = 0

    def __init__(self, listing, indices, view, resolution, seed, epoch):
        self.listing, self.view, self.resolution, self.seed, self.epoch = listing, view, resolution, seed, epoch
        self.indices = indices[augment.epoch_order(seed, epoch, len(indices))]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        image = load_image(self.listing.path(index))
        draws = augment.uniforms(self.seed, self.epoch, self.STREAM, position, 1)
        box = augment.crop_boxes(draws, [[image.height, image.width]], self.view)[0]
        cut = image.crop(tuple(box)).resize((self.resolution, self.resolution), Image.BICUBIC)
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1), int(self.listing.labels[index])


def evaluation_batches(beton, batch_size, resolution, num_workers, device):
    """Yields (centre crops, labels) of all images in their order, on the device.

    Crops: the centred 224 / 256 of the short side, normalized float32 (n, 3, resolution, resolution). labels: int64
    (n,).
    """

    def make(step):
        chosen = np.arange(step * batch_size, min((step + 1) * batch_size, len(beton)))
        (crop,) = _crop_all(beton, chosen, [augment.center_boxes(beton.sizes[chosen])], resolution)
        return crop, chosen

    for crop, chosen in _ahead(make, -(-len(beton) // batch_size), max(1, num_workers)):
        images = augment.normalize(crop.to(device, non_blocking=True).float() / 255)
        yield images, torch.from_numpy(beton.labels[chosen]).to(device)


def _crop_all(beton, chosen, boxes, resolution):
    """Reads each image once and cuts every view's crop: list of uint8 (n, 3, resolution, resolution), one a view."""
    pin = torch.cuda.is_available()
    crops = [torch.empty((len(chosen), resolution, resolution, 3), dtype=torch.uint8, pin_memory=pin) for _ in boxes]
    arrays = [crop.numpy() for crop in crops]
    for row, index in enumerate(chosen):
        image = beton.read(index)
        for array, box in zip(arrays, boxes):
            xmin, ymin, xmax, ymax = box[row]
            # Cut first: with resize(box=...) the filter would look at pixels outside the crop, torchvision's does not.
            cut = Image.fromarray(np.ascontiguousarray(image[ymin:ymax, xmin:xmax]))
            array[row] = cut.resize((resolution, resolution), Image.BILINEAR)
    return [crop.permute(0, 3, 1, 2) for crop in crops]


def _ahead(make, steps, num_workers):
    """make(0), make(1), ... in order, computed by threads a few steps ahead of their use."""
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = deque()
        for step in range(steps):
            waiting.append(pool.submit(make, step))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
