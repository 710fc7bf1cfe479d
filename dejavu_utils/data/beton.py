"""FFCV's .beton files, version 2: images and labels in one file, written in parallel, read at
random.

Layout (little endian): header; one descriptor per field; one record per sample; the images, none of
which crosses a page boundary; the allocation table. Source: the format of FFCV
(https://github.com/libffcv/ffcv); files go both ways.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dejavu_utils.errors import InputError
from dejavu_utils.files import check_free_space, complete_file
from dejavu_utils.runtime.resumable import OnProgress

T = TypeVar("T")
MODES = ("raw", "jpg", "smart")
VERSION = 2
MIN_PAGE_SIZE = 2**21
DEFAULT_PAGE_SIZE = 2**23
MAX_CLASSES = 2**20  # a larger label is no label
MAX_SIDE = 2**16 - 1  # of an image, pixels
_FIRST_IMAGES = 200  # images after which the size of the whole file is estimated
_MORE_ROOM = "make room, or write jpg images (--write-mode jpg)"
# of an image: more would take above 1 % of the writing
_DIGEST_BYTES = 2**14
_OLDER_DIGEST_BYTES = 2**16
_LABEL, _IMAGE = 1, 2  # FFCV's type ids
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
# What a record holds of a float, bytes, an array, JSON, a tensor.
_OTHER_FIELDS = {0: "<f8", 3: _BYTES, 4: "<u8", 5: _BYTES, 6: "<u8"}
_JPG = 0
_RAW = 1
_HEADER = np.dtype(
    {
        "names": ["version", "num_fields", "page_size", "num_samples", "alloc_table_ptr"],
        "formats": ["<u2", "<u2", "<u4", "<u8", "<u8"],
    },
    align=True,
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
_IMAGE_RECORD = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_RECORD = np.dtype([("image", _IMAGE_RECORD), ("label", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class Encoding:
    """How images are stored. mode: raw pixels, jpg, or smart (jpg where the raw pixels need more
    than smart_threshold bytes; raw where no threshold is given). max_resolution: longest side in
    pixels, None for no limit. ValueError for another mode."""

    mode: str = "raw"
    smart_threshold: int | None = None
    max_resolution: int | None = None
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"write mode {self.mode!r} is not one of {', '.join(MODES)}")

    def encode(self, image: np.ndarray) -> tuple[int, memoryview]:
        """uint8 H x W x 3, of the size in which it is stored -> (_RAW or _JPG, the bytes)."""
        fits = self.smart_threshold is None or image.nbytes <= self.smart_threshold
        if self.mode == "raw" or (self.mode == "smart" and fits):
            return _RAW, np.ascontiguousarray(image).data.cast("B")
        import cv2  # a sixth faster than PIL, with the same bytes

        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])
        return _JPG, data.data.cast("B")


def write_beton(
    path: str | Path,
    images: Sequence[np.ndarray],
    labels: Sequence[int] | np.ndarray,
    encoding: Encoding = Encoding(),
    page_size: int = DEFAULT_PAGE_SIZE,
    num_workers: int = 1,
    skip_unreadable: bool = False,
    on_progress: OnProgress = lambda count: None,
) -> tuple[dict[int, str], str]:
    """Writes a .beton, complete or not at all; the bytes depend on the input alone, not on
    num_workers.

    images: sequence whose items are uint8 H x W x 3 RGB arrays; read by `num_workers` threads, a
    few at a time. One that cannot be read raises InputError: it ends the writing, or is left out if
    skip_unreadable. labels: int (n,). page_size: bytes, a power of two of at least 2 MiB, doubled
    until the largest image fits. on_progress: called with the number of images done since the last
    call. Returns ({position in `images`: reason} of those left out, the file's Beton.digest, which
    is made while it is written). InputError if the disk is too small for the size estimated from
    the first images.
    """
    if page_size < MIN_PAGE_SIZE or page_size & (page_size - 1):
        raise ValueError(f"page size {page_size} is not a power of two of at least {MIN_PAGE_SIZE}")
    records = np.zeros(len(images), _RECORD)
    records["label"] = labels
    allocations = np.zeros(len(images), _ALLOCATION)
    skipped: dict[int, str] = {}
    heads = [b""] * len(images)  # digests; those of skipped images stay empty
    position = _next_page(_HEADER.itemsize + 2 * _FIELD.itemsize + records.nbytes, page_size)

    def encode(index: int) -> memoryview | InputError:
        try:
            image = shrink(images[index], encoding.max_resolution)
        except InputError as error:
            return error
        height, width, _ = image.shape
        if max(height, width) > MAX_SIDE:
            return InputError(
                f"image {index} is larger than {MAX_SIDE} pixels: give a smaller --max-resolution"
            )
        mode, data = encoding.encode(image)
        records["image"][index] = (mode, width, height, 0)
        heads[index] = _head_digest(data)
        return data

    with complete_file(path) as temporary, open(temporary, "wb") as handle:
        for index, data in enumerate(_in_order(encode, len(images), num_workers)):
            if index == _FIRST_IMAGES:
                check_free_space(path, position * len(images) / index, _MORE_ROOM)
            on_progress(1)
            if isinstance(data, InputError):
                if not skip_unreadable:
                    raise data
                skipped[index] = str(data)
                continue
            size = len(data)
            while size > page_size:
                page_size *= 2  # what lies within smaller pages lies within larger ones
            if position // page_size != (position + size - 1) // page_size:
                position = _next_page(position, page_size)
            handle.seek(position)  # what is skipped reads as zeros
            handle.write(data)
            records["image"]["data_ptr"][index] = position
            allocations[index] = (0, position, size)
            position += size
        kept = np.delete(np.arange(len(images)), list(skipped))
        tables = _write_tables(handle, records, allocations[kept], kept, page_size, position)
    return skipped, _joint_digest(heads, tables)


def _write_tables(
    handle: BinaryIO,
    records: np.ndarray,
    allocations: np.ndarray,
    kept: np.ndarray,
    page_size: int,
    position: int,
) -> bytes:
    """Writes the table of allocations behind the images, which end at `position`, and before them
    the header and the records of the images that were kept; returns those records."""
    allocations["sample_id"] = np.arange(len(kept))
    position = _next_page(position, page_size)
    handle.seek(position)
    handle.write(allocations.tobytes())
    handle.seek(0)
    handle.write(np.array([(VERSION, 2, page_size, len(kept), position)], _HEADER).tobytes())
    handle.write(np.array([(_IMAGE, b"image", b""), (_LABEL, b"label", b"")], _FIELD).tobytes())
    as_bytes = records.view(f"V{_RECORD.itemsize}")  # so that the padding stays zero
    tables = as_bytes[kept].tobytes()
    handle.write(tables)
    return tables


def _head_digest(data: memoryview) -> bytes:
    """SHA-256 of the first bytes of an image as it is stored."""
    return hashlib.sha256(data[:_DIGEST_BYTES]).digest()


def _joint_digest(heads: list[bytes], tables: bytes) -> str:
    return hashlib.sha256(b"".join(heads) + tables).hexdigest()


def shrink(image: np.ndarray, max_resolution: int | None) -> np.ndarray:
    """uint8 H x W x 3 -> the same with the longest side at most max_resolution pixels, by area
    interpolation.

    Both sides become int(side x (max_resolution / longest)) in floating point, as published (561
    becomes 511 at 512).
    """
    longest = max(image.shape[:2])
    if max_resolution is None or longest <= max_resolution:
        return image
    # area interpolation as FFCV does it, to the bit; PIL's box filter takes whole pixels
    import cv2

    ratio = max_resolution / longest
    height, width = (max(1, int(side * ratio)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _next_page(position: int, page_size: int) -> int:
    return -(-position // page_size) * page_size


def _in_order(function: Callable[[int], T], count: int, num_workers: int) -> Iterator[T]:
    """function(0), function(1), ..., computed by threads, a few at a time."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for index in range(count):
                waiting.append(pool.submit(function, index))
                if len(waiting) >= 4 * max(1, num_workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the first failure ends the others
            for future in waiting:
                future.cancel()


def _record_type(fields: np.ndarray) -> np.dtype:
    """The dtype of a record from the descriptors of its fields; its fields "image" and "label" are
    the ones to read.

    A record is a C struct of the fields' parts, in their order.
    """
    types = fields["type_id"].tolist()
    names = [name.decode(errors="replace") for name in fields["name"].tolist()]
    parts: list[Any] = []
    known = {_IMAGE: _IMAGE_RECORD, _LABEL: "<i8", **_OTHER_FIELDS}
    for place, type_id in enumerate(types):
        if type_id not in known:
            raise ValueError(
                f"its fields are {names}, of types {types}: how large type {type_id} is, is not known"
            )
        parts.append((f"_{place}", known[type_id]))
    for wanted, type_id in (("image", _IMAGE), ("label", _LABEL)):
        candidates = [place for place, other in enumerate(types) if other == type_id]
        named = [place for place in candidates if names[place] == wanted] or candidates
        if len(named) != 1:
            raise ValueError(
                f"its fields are {names}, of types {types}: expected one {wanted}, or one of that name"
            )
        parts[named[0]] = (wanted, known[type_id])
    return np.dtype(parts, align=True)


class Beton:
    """A .beton with an image and a label a sample, read at random (memory-mapped; safe in threads;
    can be pickled).

    Of FFCV's files with further fields, in any order, the image and the label are taken: the fields
    of these names, or the only ones of their types (an image, an integer). labels: int64 (n,).
    sizes: int64 (n, 2), height and width in pixels. num_classes: 1 + largest label. path: str.
    fingerprint: text that tells data sets apart (from labels, sizes and places of the images).
    in_memory: read the whole file first. InputError, which names the file, for one that is not a
    .beton or is truncated.
    """

    def __init__(self, path: str | Path, in_memory: bool = False) -> None:
        self.path = str(path)
        self.in_memory = in_memory
        try:
            self._map()
            self._read_tables()
        except (ValueError, IndexError, OSError) as error:
            raise InputError(
                f"{path}: not a complete .beton of images and labels ({error}); write it again with gen_betons.sh"
            ) from None

    def _map(self) -> None:
        if not Path(self.path).is_file():
            raise OSError("no such file")
        self._bytes: np.ndarray
        if self.in_memory:
            self._bytes = np.fromfile(self.path, dtype=np.uint8)
        else:
            # Copy-on-write: the file is never written, and PyTorch takes the arrays without a copy
            # or a warning.
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="c")

    def _read_tables(self) -> None:
        header = self._table(0, _HEADER, 1)[0]
        if header["version"] != VERSION or header["num_fields"] > 64:
            raise ValueError(f"version {header['version']}, expected {VERSION}")
        fields = self._table(_HEADER.itemsize, _FIELD, int(header["num_fields"]))
        n = int(header["num_samples"])
        records = self._table(_HEADER.itemsize + fields.nbytes, _record_type(fields), n)
        self._records = np.zeros(n, _RECORD)
        for name in ("image", "label"):
            self._records[name] = records[name]
        self._images = self._records["image"]
        self.labels = self._records["label"].astype(np.int64)
        sides = [self._images["height"], self._images["width"]]
        self.sizes = np.stack(sides, axis=1).astype(np.int64)
        self._lengths = self._read_lengths(int(header["alloc_table_ptr"]))
        raw = self._images["mode"] == _RAW
        jpg = self._images["mode"] == _JPG
        if not (raw | jpg).all() or (self.sizes == 0).any():
            raise ValueError("an image is neither raw nor jpg, or has no pixels")
        if n and not 0 <= self.labels.min() <= self.labels.max() < MAX_CLASSES:
            raise ValueError(f"labels from {self.labels.min()} to {self.labels.max()}")
        if (self._lengths[raw] != 3 * self.sizes[raw].prod(axis=1)).any():
            raise ValueError("its tables disagree")
        self.num_classes = int(self.labels.max()) + 1 if n else 0
        self.fingerprint = hashlib.sha256(self._records.tobytes()).hexdigest()[:16]

    def _read_lengths(self, start: int) -> np.ndarray:
        """Bytes of each image, int64 (n,), from the allocation table that begins at `start`."""
        n = len(self._records)
        # other fields have theirs, too
        entries = max(n, (len(self._bytes) - start) // _ALLOCATION.itemsize)
        table = self._table(start, _ALLOCATION, entries)
        end = np.uint64(len(self._bytes))
        if (table["ptr"] > end).any() or (table["size"] > end - table["ptr"]).any():
            raise ValueError("images lie beyond its end")
        # Of entries that begin at one place the last one is the image: the others are empty.
        table = table[np.lexsort((table["size"], table["ptr"]))]
        places = self._images["data_ptr"]
        after = np.searchsorted(table["ptr"], places, side="right")
        own = table[np.maximum(after - 1, 0)] if n else table[:0]
        if (own["ptr"] != places).any():
            raise ValueError("its tables disagree")
        return own["size"].astype(np.int64)

    def _table(self, start: int, dtype: np.dtype, count: int) -> np.ndarray:
        data = self._bytes[start : start + count * dtype.itemsize]
        if len(data) < count * dtype.itemsize:
            raise ValueError("it is truncated")
        return np.frombuffer(data.tobytes(), dtype)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of those of the first 16 KB of every image, and of the tables: tells data sets
        apart by what they show."""
        heads = [_head_digest(self._stored(index).data) for index in self._in_file_order()]
        return _joint_digest(heads, self._records.tobytes())

    @cached_property
    def older_digest(self) -> str:
        """The digest in older records: of more bytes, and tables first, so that it could not be
        made while writing."""
        contents = hashlib.sha256(self._records.tobytes())
        for index in self._in_file_order():
            contents.update(self._stored(index)[:_OLDER_DIGEST_BYTES].data)
        return contents.hexdigest()

    def _in_file_order(self) -> np.ndarray:
        return np.argsort(self._images["data_ptr"])

    def _stored(self, index: int) -> np.ndarray:
        """The bytes of an image, uint8 (.,)."""
        start = int(self._images["data_ptr"][index])
        return self._bytes[start : start + int(self._lengths[index])]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as a uint8 H x W x 3 RGB array (a view of the file, not to be written, for
        raw ones)."""
        data = self._stored(index)
        if self._images["mode"][index] == _RAW:
            return data.reshape(*self.sizes[index], 3)
        # a fifth faster than PIL, with the same pixels; torchvision's decoder keeps other threads
        # waiting
        import cv2

        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:  # nothing to decode, or far too large
            image = None
        if image is None or image.shape[:2] != tuple(self.sizes[index]):
            raise InputError(
                f"{self.path}: image {index} cannot be decoded; write the file again with gen_betons.sh"
            )
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # OpenCV 4.10 decodes to BGR alone

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # the system keeps one copy of a file for all processes
        vars(self).update(state, in_memory=False)
        self._map()
