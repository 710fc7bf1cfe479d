"""How often do RCDM's samples show the correct class? ClassifierComparison by a supervised model of the same classes.

Reads an attack, the RCDMs of both models and a supervised checkpoint of train_SSL.py (the judge). One sample per image;
prints and writes, with 95 % intervals: how often the judge is correct on real images, on samples from the
representation of whole images (public ones, that RCDM was trained on; as many that neither RCDM nor its encoder saw),
and on reconstructions from crops under target and reference model: of all attacked examples, and of each outcome.

    python bash_examples/judge_rcdm.py --save_path /tmp/judged.json --judge_pth demo/seed0/judge/model_ep100.pth \\
        --attack demo/seed0/simclr_300epochs/attack_sweeps/NN_attk_simclr_50pc_300ep \\
        --rcdm_A demo/seed0/simclr_300epochs/RCDM/rcdm_simclr_300ep_50pc_A \\
        --rcdm_B demo/seed0/simclr_300epochs/RCDM/rcdm_simclr_300ep_50pc_B \\
        --unseen_idx_pth demo/seed0/judge/test.npy --public_idx_pth demo/seed0/index/50_per_class/public.npy
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.analysis import memorization as mem
from dejavu_utils.analysis.intervals import mean_of_proportions
from dejavu_utils.analysis.report import figure_in_words
from dejavu_utils.cli import Parser, add_flags, add_paths, existing_folder, non_negative_int, run
from dejavu_utils.data.image_dataset import IndexedImages
from dejavu_utils.data.index_files import load_indices
from dejavu_utils.errors import InputError
from dejavu_utils.files import save_json
from dejavu_utils.imagenet import MEAN, STD
from dejavu_utils.label_free.scores import CountedEstimate
from dejavu_utils.log import Progress
from dejavu_utils.naming import SETS, TWIN
from dejavu_utils.networks.loading import load_network
from dejavu_utils.reconstruction.diffusion import Diffusion
from dejavu_utils.reconstruction.pictures import image_transform
from dejavu_utils.reconstruction.rcdm import Attack, check_rcdms, conditions, load_rcdm, sample_seeds, sources_of
from dejavu_utils.typed_json import to_json


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    paths = {
        "--attack": "folder of label_inference_attack.py",
        "--rcdm_A": "folder of train_RCDM.py with model A as the encoder",
        "--rcdm_B": "the same with model B",
        "--judge_pth": "supervised checkpoint of train_SSL.py",
        "--unseen_idx_pth": ".npy of real images that the judge was not trained on",
        "--public_idx_pth": ".npy of the images that the RCDMs were trained on",
    }
    add_paths(parser, paths)
    sampling = {
        "--respacing": ("25", str, "steps of the sampling: 25, ddim25, ...; empty: all"),
        "--seed": (0, non_negative_int, "of the sampling noise"),
    }
    add_flags(parser, sampling)
    add_paths(parser, {"--save_path": "json of the figures"})
    return parser.parse_args(argv)


def main():
    args = parse_args()
    for name in ("attack", "rcdm_A", "rcdm_B"):
        existing_folder(getattr(args, name), f"--{name}")
    attack = Attack(args.attack)
    rcdms = {name: load_rcdm(getattr(args, f"rcdm_{name}")) for name in SETS}
    for warning in check_rcdms(attack, rcdms):
        print(f"warning: {warning}")
    for name, rcdm in rcdms.items():
        check_held_out(attack, name, rcdm)
    judge = Judge(args.judge_pth, rcdms["A"].device)
    listing = attack.listing
    unseen = load_indices(args.unseen_idx_pth, "--unseen_idx_pth", listing)
    public = load_indices(args.public_idx_pth, "--public_idx_pth", listing)
    transform = image_transform(rcdms["A"].side)
    real = [judge(x) for x, _ in DataLoader(IndexedImages(listing, unseen, transform), 128)]
    found = {"real images": estimate([np.concatenate(real) == listing.labels[unseen]])}
    whole = {"public images": [], "held-out images": []}
    for name in SETS:
        held_out = attack.tables[TWIN[name]]["index"].to_numpy()
        chosen = public[np.linspace(0, len(public) - 1, min(len(public), len(held_out))).round().astype(int)]
        for kind, indices in (("public images", chosen), ("held-out images", held_out)):
            outputs = torch.cat(list(rcdms[name].embed(listing, indices).values()), dim=1)
            classes = judge(sampled(args, rcdms[name], outputs, indices, f"model {name}, {kind}"))
            whole[kind].append(classes == listing.labels[indices])
    found["samples from whole images"] = {kind: estimate(hits) for kind, hits in whole.items()}
    attacks = [judged_attack(args, attack, name, rcdms, judge) for name in SETS]
    crops = {"all": accuracies(attacks)}
    votes = [attack.tables[name]["share"].to_numpy() for name in SETS]
    for outcome in mem.OUTCOMES:
        chosen = [judged.chosen(vote == outcome) for judged, vote in zip(attacks, votes)]
        crops[outcome] = {**accuracies(chosen), "n": sum(len(judged.labels) for judged in chosen)}
    found["samples from crops"] = crops
    save_json(args.save_path, to_json({**found, "settings": vars(args)}))
    report(found, chance=1 / len(listing.classes))


def accuracies(attacks):
    """{"target", "reference", "score": Estimate} of judged attacks."""
    summary = mem.summarize(attacks, 1)
    return {"target": summary.target, "reference": summary.reference, "score": summary.score}


def check_held_out(attack, name, rcdm):
    """InputError where images that stand for those an RCDM never saw are among those it was trained on."""
    held_out = attack.tables[TWIN[name]]["index"].to_numpy()
    seen = rcdm.trained_on.seen(held_out) if rcdm.trained_on else 0
    if seen:
        raise InputError(
            f"--rcdm_{name}: was trained on {seen} of the {len(held_out)} held-out images; train it on public images "
            "alone"
        )


class Judge:
    """A supervised network: float (n, 3, s, s) in [0, 1] -> the class it sees in each, int64 (n,)."""

    def __init__(self, path, device):
        self.network, self.device = load_network(path, "--judge_pth").to(device), device
        if self.network.loss != "supervised":
            raise InputError(f"--judge_pth {path}: is no supervised model")

    @torch.no_grad()
    def __call__(self, images):
        parts = [self.network.embed(normalize(x.to(self.device), MEAN, STD), "logits") for x in images.split(128)]
        return torch.cat(parts).argmax(dim=1).cpu().numpy()


def sampled(args, rcdm, outputs, indices, what):
    """One sample per image."""
    seeds = sample_seeds(indices, 1, args.seed)
    steps = len(Diffusion(rcdm.settings, args.respacing))
    with Progress(len(indices) * steps, f"steps of sampling, {what}") as progress:
        return rcdm.sample(outputs, seeds, args.respacing, progress.update)


def judged_attack(args, attack, attacked, rcdms, judge):
    """What the judge sees in the reconstructions of a set's examples, under target and reference model."""
    table = attack.tables[attacked]
    indices, predictions = table["index"].to_numpy(), []
    for source in sources_of(attack, attacked, rcdms["A"], rcdms["B"]):
        condition, _ = conditions(source, attacked, indices)
        classes = judge(sampled(args, source.rcdm, condition, indices, f"set {attacked}, {source.name}"))
        predictions.append(mem.Predictions(classes[:, None], np.zeros(len(classes))))
    return mem.DirectedAttack(*predictions, table["label"].to_numpy())


def estimate(hits):
    return CountedEstimate(**vars(mean_of_proportions(hits)), n=sum(map(len, hits)))


def report(found, chance):
    print(f"\nThe judge is correct (chance {chance:.3f}), 95 % intervals:")
    real = found["real images"]
    print(f"  on {real.n} real images it was not trained on: {figure_in_words(real)}")
    for kind, figure in found["samples from whole images"].items():
        print(f"  on samples from {figure.n} {kind}: {figure_in_words(figure)}")
    print("  on reconstructions from crops of attacked examples:")
    for outcome, figures in found["samples from crops"].items():
        count = f" ({figures['n']} by the vote of neighbors)" if "n" in figures else ""
        words = ", ".join(f"{name} {figure_in_words(figures[name])}" for name in ("target", "reference", "score"))
        print(f"    {outcome}{count}: {words}")


if __name__ == "__main__":
    run(main)
