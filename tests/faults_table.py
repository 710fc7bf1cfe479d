"""Faults and hostile input, one table: what is wrong, which command meets it, and how it must end.

Every row ends in one clear line that names the file or flag, with exit code 2, and with everything that was there
before untouched; or, where that is what a user wants, in a reported count (code 0). test_faults.py runs the rows.
"""

import os
from collections import namedtuple

from fault_machinery import WRONG
from stages import SCRIPTS

# Commands: what is wrong (fault_machinery.WRONG) -> parts of the line; => parts of the output of a run that ends well.
# ALL: every command; OUT: the flag of the output folder; PID: this process.
TABLE = """
    beton attack probe: unreadable image    -> c0_00.JPEG: cannot be read as an image
    beton attack probe: empty image         -> c0_00.JPEG: cannot be read as an image
    beton attack probe: image of 400 million pixels -> c0_00.JPEG: cannot be read as an image ;; 400000000 pixels
    rcdm: unreadable public image           -> c0_08.JPEG: cannot be read
    attack: cut public image                -> c0_08.JPEG: cannot be read as an image
    beton: image of 1 x 1                   => x.beton
    beton: image of 20000 x 1               => x.beton
    attack: image of 1 x 1                  => set A: 11 of 12 images attacked (1 box outside the image)
    attack: image of 20000 x 1              => set A: 11 of 12 images attacked (1 box outside the image)
    attack: public image of 1 x 1           => 12 public images
    attack: public image of 20000 x 1       => 12 public images
    probe: image of 1 x 1                   => training: top-1
    probe: image of 20000 x 1               => training: top-1
    rcdm: cut public image left out         => 1 of 12 images cannot be read ;; 11 images, 4 per step
    rcdm: cut public image left out         -> --dataset_indices ;; was made from something else ;; another --out_dir

    beton attack: class missing             -> made for another image folder ;; first is c1
    beton attack: class added               -> made for another image folder ;; first is c00
    partition beton attack probe: class without images -> no image in c9
    partition attack: no class              -> expected class folders
    partition: classes of one image         => 4 per class: classes too small for it: 3 (c0, c1, c2)
    partition: class without boxes          => classes without XML: 1 (c1)
    partition: no boxes                     -> --bbox_dir ;; no XML there belongs to an image
    attack: no boxes                        -> --imgnet_bbox_pth ;; no XML there belongs ;; give --use_corner_crop 1

    beton: index of another data set        -> --idx-path ;; made for another image folder
    attack: index of another data set       -> --bbox_A_idx_pth ;; made for another image folder
    probe: index of another data set        -> --train_idx_pth ;; made for another image folder
    beton: index out of range               -> --idx-path ;; images 0 to 35
    beton: index negative                   -> --idx-path ;; from -1 to 2
    beton: index too large for int64        -> --idx-path ;; images 0 to 35
    beton: index duplicated                 -> --idx-path ;; holds an index twice
    beton: index empty                      -> --idx-path ;; holds no index
    beton: index of decimals                -> --idx-path ;; float64
    beton: index of two dimensions          -> --idx-path ;; (2, 2)
    beton: index of one number              -> --idx-path ;; expected a row
    beton: index of true and false          -> --idx-path ;; bool
    beton: index of objects with code       -> --idx-path ;; not an .npy file
    beton: index of pickled code            -> --idx-path ;; not an .npy file
    beton: index cut                        -> --idx-path ;; not an .npy file
    beton: index without bytes              -> --idx-path ;; not an .npy file
    beton: index of other content           -> --idx-path ;; not an .npy file
    beton: index in an archive              -> --idx-path ;; an archive
    beton: index of a million billion       -> --idx-path ;; not an .npy file
    attack: index duplicated                -> --bbox_A_idx_pth ;; holds an index twice
    attack: public index duplicated         -> --public_idx_pth ;; holds an index twice
    probe: index duplicated                 -> --train_idx_pth ;; holds an index twice
    rcdm: index duplicated                  -> --dataset_indices ;; holds an index twice
    probe: index empty                      -> --train_idx_pth ;; holds no index
    probe: validation index empty           -> --val_idx_pth ;; holds no index
    attack: index empty                     -> --bbox_A_idx_pth ;; holds no index
    attack: public index empty              -> --k 7 ;; only 0 images
    attack: index in both sets              -> must be disjoint
    beton: index of a killed partition      -> did not finish ;; rerun it

    attack: checkpoint without bytes        -> --model_B_pth ;; not a checkpoint
    attack: checkpoint of other content     -> --model_B_pth ;; not a checkpoint
    attack: checkpoint cut early            -> --model_B_pth ;; not a checkpoint
    attack: checkpoint cut late             -> --model_B_pth ;; not a checkpoint
    probe: checkpoint cut late              -> --model_pth ;; not a checkpoint
    rcdm: checkpoint cut late               -> --ssl_model_pth ;; not a checkpoint
    attack: checkpoint with code            -> --model_B_pth ;; not a checkpoint ;; never run
    attack: checkpoint of bare code         -> --model_B_pth ;; not a checkpoint ;; never run
    attack: checkpoint of odd types         -> --model_B_pth ;; does not hold the network
    attack: checkpoint with NaN             -> --model_B_pth ;; not finite
    probe: checkpoint with NaN              -> --model_pth ;; not finite
    training: model.pth without bytes       -> model.pth ;; not a checkpoint
    training: model.pth cut                 -> model.pth ;; not a checkpoint
    training: model.pth without settings    -> model.pth ;; not written by this program
    training: model.pth without optimizer   -> model.pth ;; resumed from it (no optimizer)
    training: model.pth without train_set   -> model.pth ;; resumed from it (no train_set)
    training: model.pth with code           -> model.pth ;; never run
    training: model.pth with NaN            -> the loss is nan ;; checkpoint is kept

    training: beton without bytes           -> bad.beton: not a complete .beton
    training: beton cut early               -> bad.beton: not a complete .beton
    training: beton cut late                -> bad.beton: not a complete .beton
    training: beton of another version      -> bad.beton: not a complete .beton ;; version 3
    training: beton of no fields            -> bad.beton: not a complete .beton ;; of types
    training: beton of 65535 fields         -> bad.beton: not a complete .beton ;; version
    training: beton of too many samples     -> bad.beton: not a complete .beton ;; truncated
    training: beton's table beyond its end  -> bad.beton: not a complete .beton ;; truncated
    training: beton's table in the header   -> bad.beton: not a complete .beton ;; images lie beyond its end
    training: beton's image beyond its end  -> bad.beton: not a complete .beton ;; beyond its end
    training: beton's image wraps around    -> bad.beton: not a complete .beton ;; beyond its end
    training: beton's image of 16 EiB       -> bad.beton: not a complete .beton ;; beyond its end
    training: beton's record of no image    -> bad.beton: not a complete .beton ;; tables disagree
    training: beton's wrong width           -> bad.beton: not a complete .beton ;; tables disagree
    training: beton's image of no pixels    -> bad.beton: not a complete .beton ;; no pixels
    training: beton's unknown mode          -> bad.beton: not a complete .beton ;; neither raw nor jpg
    training: beton's negative label        -> bad.beton: not a complete .beton ;; labels from -1
    training: beton's enormous label        -> bad.beton: not a complete .beton ;; to 4611686018427387904
    training: beton with raw called jpg     -> cannot be decoded

    attack: no file beyond 20 kB            -> cannot be written
    partition: no file beyond 200 bytes     -> bbox_A.npy: cannot be written
    beton: no file beyond 200 bytes         -> x.beton: cannot be written
    probe: no file beyond 200 bytes         -> .pth: cannot be written
    rcdm: no file beyond 200 bytes          -> cannot be written
    training: no file beyond 1 MB           -> cannot be written ;; disk full
    ALL: full disk                          -> cannot be written
    ALL: read-only folder                   -> Read-only file system
    ALL: file in the place of the folder    -> out
    ALL: file above the folder              -> a file
    beton: folder in the place of the file  -> x.beton: is a folder; name a file
    attack: crop cache below a file         -> a file/x.npz: cannot be written
    attack: crop cache of another name      -> --crop_cache ;; must end in .npz
    partition training attack probe rcdm: folder in use -> --OUT ;; process PID ;; writes there now
    rcdm: weights of another program        -> --out_dir ;; holds model000002.pt

    training attack probe rcdm: left WORLD_SIZE -> RANK is not set
    training attack probe rcdm: rank beyond the world -> RANK is 2, not a number from 0 to 1
    probe rcdm: too few open files          -> raise ulimit -n
"""
Fault = namedtuple("Fault", "name command make texts code")


def faults(table):
    for line in filter(None, table.replace("ALL", " ".join(SCRIPTS)).replace("PID", str(os.getpid())).splitlines()):
        given, arrow, parts = line.replace(" => ", " -> = ").partition(" -> ")
        commands, name = given.strip().split(": ")
        code = 0 if parts.startswith("= ") else 2
        for command in commands.split():
            texts = parts.removeprefix("= ").replace("OUT", SCRIPTS[command][1]).split(" ;; ")
            yield Fault(name, command, WRONG[name], texts, code)


FAULTS = list(faults(TABLE))


# Annotations: one run of the attack over all of them, each of another image. What is wrong is counted.

BOX = "<object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
GOOD = "<annotation>" + BOX.format(5, 5, 25, 25) + "</annotation>"
BOMB = '<!DOCTYPE x [<!ENTITY a "{}">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi")
) + "]><annotation>&i;" + BOX.format(5, 5, 25, 25) + "</annotation>"  # fmt: skip
UNREADABLE, NO_OBJECT, REVERSED = "unreadable XML", "no object in the XML", "reversed box"
TOO_SMALL, OUTSIDE, NO_AREA = "no crop larger than min_px", "box outside the image", "boxes without area"
ANNOTATIONS = {
    "good": (GOOD, None),
    "absent": (None, "no XML"),
    "without bytes": ("", UNREADABLE),
    "malformed": ("<annotation><object>", UNREADABLE),
    "not XML": (b"\x00\x01\xff" * 50, UNREADABLE),
    "entities that grow": (BOMB.format("a" * 10), UNREADABLE),
    "entities that grow, in UTF-16": (BOMB.format("a" * 10).encode("utf-16"), UNREADABLE),
    "entity of another file": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + GOOD.replace("<object>", "&a;<object>"),
        UNREADABLE,
    ),
    "document type on the network": ('<!DOCTYPE x SYSTEM "http://localhost:9/x.dtd">' + GOOD, UNREADABLE),
    "unknown encoding": ('<?xml version="1.0" encoding="none"?>' + GOOD, UNREADABLE),
    "of 3 MB": (GOOD.replace("<object>", "<x/>" * 750_000 + "<object>"), UNREADABLE),
    "another root": ("<html><object/></html>", NO_OBJECT),
    "no object": ("<annotation></annotation>", NO_OBJECT),
    "box without numbers": (GOOD.replace("25", "wide"), UNREADABLE),
    "box of NaN": (GOOD.replace("25", "nan"), UNREADABLE),
    "box of infinity": (GOOD.replace("25", "1e999"), UNREADABLE),
    "box without a side": (GOOD.replace("<xmin>5</xmin>", ""), UNREADABLE),
    "box reversed": ("<annotation>" + BOX.format(30, 5, 20, 25) + "</annotation>", REVERSED),
    "box negative": ("<annotation>" + BOX.format(-30, -5, 20, 25) + "</annotation>", OUTSIDE),
    "box beyond the width": ("<annotation>" + BOX.format(5, 5, 2000, 25) + "</annotation>", OUTSIDE),
    "box beyond the height": ("<annotation>" + BOX.format(5, 5, 25, 2000) + "</annotation>", OUTSIDE),
    "box without area": ("<annotation>" + BOX.format(20, 20, 20, 20) + "</annotation>", NO_AREA),
    "box over all": ("<annotation>" + BOX.format(0, 0, 50, 60) + "</annotation>", TOO_SMALL),
    "box of a thousand digits": (GOOD.replace("25", "9" * 1000), UNREADABLE),
}
