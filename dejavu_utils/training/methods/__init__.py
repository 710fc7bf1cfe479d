"""The SSL methods (and the supervised loss), one file each, and the table of their names.

A new one, `toy`, takes
* `toy.py` here, with a subclass of Method: its loss, and only what differs from other methods: which views it wants,
  what it keeps beside the network, what it checks;
* a line in METHODS below;
* a line in HEADS of dejavu_utils.models: {}, or the module that it adds to the network (a checkpoint holds it, and
  attack and probe rebuild it without this folder). `--training.loss` and the `--loss` flags take their choices there;
* if it has settings, a dataclass in dejavu_utils/training/settings.py and a line in its class Settings: they are
  `--toy.NAME`, and `settings.toy.NAME` in the method. A loss that is a formula of its own belongs in
  dejavu_utils/training/losses.py, with a test against a reference in
  tests/unit/training/test_losses.py.
Then `configs/toy_cfg.yaml` makes it a method of bash_examples/sweep.sh (LOSS=toy), and
tests/unit/runtime/test_distributed.py and tests/scripts/test_train.py train it like the others: two processes as one,
stopped and resumed as uninterrupted.
"""

from dejavu_utils.training.methods.barlow import BarlowTwins
from dejavu_utils.training.methods.byol import Byol
from dejavu_utils.training.methods.dino import Dino
from dejavu_utils.training.methods.mocov3 import MoCoV3
from dejavu_utils.training.methods.simclr import SimCLR
from dejavu_utils.training.methods.supervised import Supervised
from dejavu_utils.training.methods.vicreg import VICReg

METHODS = {
    "vicreg": VICReg,
    "simclr": SimCLR,
    "barlow": BarlowTwins,
    "byol": Byol,
    "dino": Dino,
    "supervised": Supervised,
    "mocov3": MoCoV3,
}
