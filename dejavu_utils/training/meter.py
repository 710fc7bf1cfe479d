"""Linear probes on the layers of a network, and the losses and accuracies of an epoch over all
processes."""

from typing import Any

import torch
from torch import Tensor, nn

from dejavu_utils.runtime.distributed import sum_over_processes, world_size


class Meter:
    """Sums of losses and probes' hits over the batches of an epoch; kept on the device until they
    are asked for."""

    def __init__(self) -> None:
        # float64 (probes, 3): sums of the loss, correct images, images correct among five
        self.sums: Any = 0
        self.loss_sum: Any = 0
        self.loss: Any = 0  # of the last batch
        self.batches = self.count = 0

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        logits: list[Tensor],
        probe_losses: list[Tensor],
        labels: Tensor,
    ) -> None:
        """A batch: its loss, and of each probe logits float (n, classes) and loss."""
        rows = []
        for z, probe_loss in zip(logits, probe_losses):
            summed_loss = probe_loss.float() * len(labels)
            rows.append(torch.stack([summed_loss, *correct_in_top(z, labels)]))
        self.sums = self.sums + torch.stack(rows).double()
        self.loss = loss.detach().double()
        self.loss_sum = self.loss_sum + self.loss
        self.batches += 1
        self.count += len(labels)

    def average(self) -> None:
        """Makes the sums of every process their mean; all have seen as many images."""
        if self.batches:
            self.sums = sum_over_processes(self.sums) / world_size()
            losses = torch.stack([self.loss_sum, self.loss])
            means = sum_over_processes(losses) / world_size()
            self.loss_sum, self.loss = means.unbind()

    def total(self, probes: int, device: torch.device) -> "Meter":
        """Makes the sums of every process their total; they may have seen different numbers of
        images, or none."""
        if not self.count:
            self.sums = torch.zeros(probes, 3, dtype=torch.float64, device=device)
        self.sums = sum_over_processes(self.sums)
        count = torch.tensor([self.count], device=device)
        self.count = int(sum_over_processes(count))
        return self

    def result(self) -> dict[str, float]:
        """The record's training entries, over the images of all processes."""
        self.average()
        train_loss = self.loss_sum / self.batches
        return {"train_loss": train_loss.item(), "loss": self.loss.item(), **self.probes("")}

    def probes(self, suffix: str) -> dict[str, float]:
        """loss_classif, top_1 and top_5 of each layer's probe."""
        record = {}
        means = self.sums / self.count
        for layer, (loss, top_1, top_5) in enumerate(means.tolist()):
            record[f"loss_classif{suffix}_layer{layer}"] = loss
            record[f"top_1{suffix}_layer{layer}"] = top_1
            record[f"top_5{suffix}_layer{layer}"] = top_5
        return record

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(device) if torch.is_tensor(value) else value)


def correct_in_top(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """[how many labels are the first prediction, how many among the first five], scalars on the
    device.

    logits: float (n, classes). labels: int64 (n,).
    """
    count = min(5, logits.shape[1])
    predicted = logits.detach().topk(count, dim=1).indices
    correct = predicted == labels[:, None]
    return [correct[:, 0].sum(), correct.sum()]


class Probes(nn.Module):
    """One linear classifier on each of several layers' outputs. widths: list of int."""

    def __init__(self, widths: list[int], num_classes: int) -> None:
        super().__init__()
        self.probes = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)

    def forward(self, outputs: list[Tensor]) -> list[Tensor]:
        """list of float (n, width) -> list of float32 (n, num_classes); no gradient reaches the
        outputs.

        In float32 whatever precision the network runs in: in bf16 two classes often tie.
        """
        return [probe(output.detach().float()) for probe, output in zip(self.probes, outputs)]
