"""The attack against the published structure, part by part; each part prints both sides, measured in turn.

data        images/s for both models without the networks: XML, decoding, crop, transform. Published structure: one
            model after the other, so that each XML is parsed and each image decoded for each.
network     the same with two networks: end to end against the bare limit (each image decoded once, two forward passes
            of the same prepared networks, nothing else) and against the published structure with its networks as they
            were trained and its neighbors by a flat faiss index; and what bf16 gains, and keeps of the neighbors.
neighbors   20 000 queries x 100 000 public embeddings of width 512 (--queries, --public, --width), k 100: time and peak
            memory against faiss's IndexFlatL2 (on a GPU, and where there is no faiss, against torch.cdist).
statistics  seconds and peak memory for neighbor files of 140 000 examples x 100 neighbors, 1000 classes: one file, and
            a whole attack (four files, all tables and intervals).

    python benchmarks/attack.py
    python benchmarks/attack.py neighbors statistics
    python benchmarks/attack.py network --device cuda --images 4096 --num_workers 16
    python benchmarks/attack.py neighbors --device cuda --queries 20000 --public 500000 --width 8192 --rounds 1
"""

import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import alternate, jpeg, natural_images
from torch.utils.data import DataLoader, Dataset

from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.memorization import predict_from_neighbors
from dejavu_utils.analysis.tables import attack_statistics, class_table, confidence_curve, example_table
from dejavu_utils.attack.neighbors import NeighborSearch
from dejavu_utils.attack.search import block_rows, nearest_public
from dejavu_utils.crops import background_crop
from dejavu_utils.data.annotations import Annotations, read_annotation
from dejavu_utils.data.background_crops import take_crops
from dejavu_utils.data.image_dataset import IndexedImages, evaluation_transform
from dejavu_utils.files import save_npy
from dejavu_utils.imagenet import ImageListing, list_images, load_image
from dejavu_utils.models import SSLNetwork
from dejavu_utils.naming import attack_path
from dejavu_utils.networks.embedder import Embedder, ImageSet, Inference
from dejavu_utils.networks.inference import prepared_for_inference
from dejavu_utils.runtime.devices import autocast
from dejavu_utils.runtime.resumable import ShardStore

SETS = ("A", "B")
CLASSES = 10
DRAWN = 64  # different images; files beyond hold them again
K = 100  # neighbors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="of: data network neighbors statistics; none given: all")
    parser.add_argument("--images", type=int, default=192, help="attacked ones, and as many public")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--public", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512, help="of the embeddings of queries and public images")
    parser.add_argument("--examples", type=int, default=140_000, help="of the statistics")
    args = parser.parse_args()
    parts = {"data": data, "network": network, "neighbors": neighbors, "statistics": statistics}
    for part in args.parts or parts:
        parts[part](args)


# Images.


class Images:
    """A drawn image folder of 500 x 375 JPEG files; the first half is attacked."""

    def __init__(self, folder, args):
        rng = np.random.default_rng(0)
        drawn = [jpeg(image) for image in natural_images(DRAWN)]
        for number in range(2 * args.images):
            name = f"c{number % CLASSES}"
            path = Path(folder) / "images" / name / f"{number:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn[number % DRAWN])
            xml = Path(folder) / "boxes" / "Annotation" / name / f"{number:05d}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xmin, ymin = rng.integers(1, 200), rng.integers(1, 100)
            sides = {"xmin": xmin, "ymin": ymin, "xmax": xmin + rng.integers(50, 280), "ymax": ymin + 150}
            box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
            xml.write_text(f"<annotation><object><bndbox>{box}</bndbox></object></annotation>")
        self.listing = list_images(Path(folder) / "images")
        self.annotations = Annotations(Path(folder) / "boxes", self.listing)
        order = rng.permutation(2 * args.images)
        self.attacked, self.public = order[: args.images], order[args.images :]


class PublishedCrops(Dataset):
    """Parses the XML, decodes and crops the image, for one model."""

    def __init__(self, images, resolution):
        self.images, self.transform = images, evaluation_transform(resolution)

    def __len__(self):
        return len(self.images.attacked)

    def __getitem__(self, position):
        listing, index = self.images.listing, self.images.attacked[position]
        image = load_image(listing.path(index))
        boxes, _ = read_annotation(self.images.annotations.path(index))
        crop = background_crop(*image.size, boxes)
        return self.transform(image.crop(crop) if crop else image), int(listing.labels[index])


def loader(dataset, args):
    return DataLoader(dataset, args.batch_size, num_workers=args.num_workers, pin_memory=args.device != "cpu")


def found_crops(images):
    found = take_crops(images.listing, images.attacked, annotations=images.annotations)
    return ImageSet("crops", found.indices, found.crops)


def data(args):
    with tempfile.TemporaryDirectory() as folder:
        images = Images(folder, args)
        public = IndexedImages(images.listing, images.public, evaluation_transform(args.resolution))

        def ours():
            crops = found_crops(images)
            transform = evaluation_transform(args.resolution)
            for dataset in (IndexedImages(images.listing, crops.indices, transform, crops.crops), public):
                for _ in loader(dataset, args):
                    pass

        def published():
            for _ in SETS:
                for dataset in (PublishedCrops(images, args.resolution), public):
                    for _ in loader(dataset, args):
                        pass

        print(f"data for two models, {args.resolution} px, {args.num_workers} workers: images/s")
        alternate({"ours": rate(ours, args), "published structure": rate(published, args)}, args.rounds)


def rate(work, args):
    def timed():
        start = time.perf_counter()
        work()
        if args.device != "cpu":
            torch.cuda.synchronize()
        return 2 * args.images / (time.perf_counter() - start)

    return timed


def network(args):
    device = torch.device(args.device)
    torch.manual_seed(0)
    plain = {model: SSLNetwork(args.arch, "512-512-512", "vicreg").eval() for model in SETS}
    prepared = {}
    for model, one in plain.items():
        twin = SSLNetwork(args.arch, "512-512-512", "vicreg").eval()
        twin.load_state_dict(one.state_dict())
        prepared[model] = prepared_for_inference(twin).to(device)
        one.to(device)
    with tempfile.TemporaryDirectory() as folder:
        images = Images(folder, args)
        k = min(100, args.images // 8)
        found = {}

        def ours(precision):
            def work():
                inference = Inference(device, precision, args.batch_size, args.num_workers)
                layers = dict.fromkeys(SETS, ["projector"])
                embedder = Embedder(prepared, layers, images.listing, inference)
                with tempfile.TemporaryDirectory() as unfinished, contextlib.redirect_stderr(io.StringIO()):
                    pieces = ShardStore(Path(unfinished), {})
                    pieces.start()
                    public = ImageSet("public", images.public)
                    bar = contextlib.nullcontext(argparse.Namespace(update=lambda count: None))
                    found[precision] = nearest_public(
                        embedder, found_crops(images), public, k, pieces, lambda total: bar
                    )

            return rate(work, args)

        @torch.inference_mode()
        def bare():
            crops = found_crops(images)
            transform = evaluation_transform(args.resolution)
            for indices, cut in ((crops.indices, crops.crops), (images.public, None)):
                for batch, _ in loader(IndexedImages(images.listing, indices, transform, cut), args):
                    batch = batch.to(device)
                    for one in prepared.values():
                        one.embed(batch, "projector")

        @torch.no_grad()
        def published():
            for one in plain.values():
                embedded = []
                for dataset in (
                    PublishedCrops(images, args.resolution),
                    IndexedImages(images.listing, images.public, evaluation_transform(args.resolution)),
                ):
                    batches = [one.embed(batch.to(device), "projector").cpu() for batch, _ in loader(dataset, args)]
                    embedded.append(torch.cat(batches).numpy())
                flat_search(*embedded, k)

        print(f"end to end, two {args.arch} at {args.resolution} px, {device}: images/s")
        sides = {"ours": ours("fp32"), "bare limit": rate(bare, args), "published structure": rate(published, args)}
        alternate({**sides, "ours in bf16": ours("bf16")}, args.rounds)
        same = [
            np.mean([len(set(a) & set(b)) / k for a, b in zip(found["fp32"].arrays[key], found["bf16"].arrays[key])])
            for key in found["fp32"].arrays
        ]
        shuffled = k / args.images
        print(f"  bf16 finds {np.mean(same):.4f} of the {k} neighbors of fp32 (by chance {shuffled:.2f})")
        network_alone(args, plain, prepared, device)


@torch.inference_mode()
def network_alone(args, plain, prepared, device):
    batch = torch.randn(args.batch_size, 3, args.resolution, args.resolution, device=device)

    def timed(networks, precision):
        def work():
            start = time.perf_counter()
            with autocast(device, precision):
                for one in networks.values():
                    one.embed(batch, "projector")
            if device.type == "cuda":
                torch.cuda.synchronize()
            return args.batch_size / (time.perf_counter() - start)

        return work

    print("forward passes of both networks alone: images/s")
    sides = {
        "ours": timed(prepared, "fp32"),
        "as trained": timed(plain, "fp32"),
        "ours in bf16": timed(prepared, "bf16"),
    }
    alternate(sides, args.rounds)


# Neighbors.


def neighbors(args):
    size = f"{args.queries} queries among {args.public}, width {args.width}, k {K}"
    print(f"neighbors of {size}, {args.device}: queries/s")
    flat = args.device == "cpu" and importlib.util.find_spec("faiss")
    peer = "IndexFlatL2" if flat else "torch.cdist"
    searches = {"ours": search_ours, peer: search_flat if flat else search_cdist}
    peaks = {}

    def side(name):
        def work():
            # A process of its own, so that its peak memory is its own.
            seconds, peaks[name] = in_a_process(searches[name], args)
            return args.queries / seconds

        return work

    alternate({name: side(name) for name in searches}, args.rounds, warm_up=0)
    for name, peak in peaks.items():
        print(f"  {name:<28} {peak:9.2f} GB beside the given embeddings")


def in_a_process(work, args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (args,))


def embeddings(args):
    """Queries and public ones in the host's memory, drawn where that is fast."""
    generator = torch.Generator(args.device).manual_seed(0)
    draw = lambda n: torch.rand(n, args.width, device=args.device, generator=generator).cpu().numpy()  # noqa: E731
    return draw(args.queries), draw(args.public)


def measured(args, work):
    queries, public = embeddings(args)
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = peak_memory(args.device)
    start = time.perf_counter()
    work(queries, public)
    return time.perf_counter() - start, peak_memory(args.device) - before


def peak_memory(device):
    """GB; of the GPU if one is used."""
    if device != "cpu":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def search_ours(args):
    def work(queries, public):
        search = NeighborSearch(queries, K, torch.device(args.device))
        step = block_rows(public.shape[1])
        for start in range(0, len(public), step):
            block = public[start : start + step]
            search.add(block, np.arange(start, start + len(block)))
        search.result()

    return measured(args, work)


def search_flat(args):
    return measured(args, lambda queries, public: flat_search(queries, public, K))


def search_cdist(args):
    return measured(args, lambda queries, public: cdist_search(queries, public, K, args.device))


def flat_search(queries, public, k):
    """By faiss's flat index; where it is not installed, by torch.cdist."""
    if not importlib.util.find_spec("faiss"):
        return cdist_search(queries, public, k)
    import faiss

    index = faiss.IndexFlatL2(public.shape[1])
    index.add(public)
    index.search(queries, k)


def cdist_search(queries, public, k, device="cpu"):
    public = torch.from_numpy(public).to(device)
    for rows in torch.from_numpy(queries).to(device).split(2048):
        torch.cdist(rows, public).topk(k, largest=False)[1].cpu()


# Statistics.


def statistics(args):
    with tempfile.TemporaryDirectory() as folder:
        draw_attack(Path(folder), args.examples)
        what = f"statistics of {args.examples} examples x {K} neighbors, 1000 classes"
        print(f"{what}: seconds and peak memory of a process")
        for name, work in (("one neighbor file", one_file), ("whole attack, four files", whole_attack)):
            runs = [in_a_process(work, folder) for _ in range(args.rounds)]
            seconds = sorted(run[0] for run in runs)
            print(
                f"  {name:<28} {seconds[len(seconds) // 2]:9.2f} s [{seconds[0]:.2f}, {seconds[-1]:.2f}]"
                f"   {max(run[1] for run in runs):.2f} GB"
            )


def draw_attack(folder, n, k=K, classes=1000):
    rng = np.random.default_rng(0)
    for attacked in SETS:
        labels = rng.integers(0, classes, n)
        for model in SETS:
            neighbor_labels = rng.integers(0, classes, (n, k))
            share = rng.random((n, 1)) * (0.6 if model == attacked else 0.4)
            neighbor_labels = np.where(rng.random((n, k)) < share, labels[:, None], neighbor_labels)
            rows = rng.permutation(n)
            for what, values in (("neighb_labels", neighbor_labels), ("attk_idxs", np.arange(n)), ("labels", labels)):
                save_npy(attack_path(folder, model, attacked, what), values[rows])


def one_file(folder):
    start = time.perf_counter()
    predict_from_neighbors(np.load(attack_path(folder, "A", "A", "neighb_labels")))
    return time.perf_counter() - start, peak_memory("cpu")


def whole_attack(folder):
    start = time.perf_counter()
    sets = read_attack(Path(folder))
    attack_statistics(sets)
    class_table(sets, [str(label) for label in range(1000)])
    confidence_curve(sets)
    examples = max(len(attacked.idxs) for attacked in sets.values())
    listing = ImageListing(Path("images"), ["class"], ["class/image.JPEG"] * examples, np.zeros(examples, np.int64))
    for attacked in sets.values():
        example_table(attacked, listing)
    return time.perf_counter() - start, peak_memory("cpu")


if __name__ == "__main__":
    main()
