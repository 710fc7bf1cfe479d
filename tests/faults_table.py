"""Faults and hostile input, one table: what is wrong, which command meets it, and how it must end.

Every row ends in one clear line that names the file or flag, with exit code 2, and with everything that was there
before untouched; or, where that is what a user wants, in a reported count (code 0). test_faults.py runs the rows.
"""

import os
import pickle

import numpy as np
from fault_machinery import (
    Payload,
    a_file_there,
    a_folder_there,
    archive,
    array_with_code,
    bare_code,
    below_a_file,
    beton,
    changed,
    checkpoint,
    class_added,
    class_empty,
    class_gone,
    class_without_boxes,
    classes_of_one_image,
    crop_cache,
    cut,
    cut_at,
    cut_to,
    drawn,
    elsewhere,
    enormous,
    environment,
    fault,
    files_of_another_program,
    image,
    in_use,
    index,
    limit,
    mounted,
    no_boxes,
    no_class,
    not_finite,
    of_odd_types,
    other_data_set,
    put,
    resume_code,
    resume_cut,
    resume_not_finite,
    resume_without,
    resuming,
    too_few_open_files,
    unfinished_partition,
    with_code,
)
from helpers import ABSENT
from stages import SCRIPTS

from dejavu_utils.checkpoint import save_checkpoint

BAD_IMAGE = "c0_00.JPEG: cannot be read as an image"
IDX = "--idx-path"
FAULTS = [
    # Images. c0_00 is the first of set A; c0_08 is public.
    *(
        fault(f"{what} image", command, image("c0/c0_00.JPEG", content), BAD_IMAGE)
        for what, content in (("unreadable", b"no image"), ("empty", b""))
        for command in ("beton", "attack", "probe")
    ),
    fault("cut image", "attack", image("c0/c0_00.JPEG", cut), BAD_IMAGE, "truncated"),
    fault("unreadable public image", "rcdm", image("c0/c0_08.JPEG", b"no image"), "c0_08.JPEG: cannot be read"),
    fault("cut public image", "attack", image("c0/c0_08.JPEG", cut), "c0_08.JPEG: cannot be read as an image"),
    *(
        fault("image of 400 million pixels", command, image("c0/c0_00.JPEG", drawn((20000, 20000), "1")), BAD_IMAGE,
              "400000000 pixels")
        for command in ("beton", "attack", "probe")
    ),
    *(
        fault(f"image of {size[0]} x {size[1]}", command, image(name, drawn(size)), text, code=0)
        for size in ((1, 1), (20000, 1))
        for command, name, text in (
            ("beton", "c0/c0_00.JPEG", "x.beton"),
            ("attack", "c0/c0_00.JPEG", "set A: 11 of 12 images attacked (1 box outside the image)"),
            ("attack", "c0/c0_08.JPEG", "12 public images"),
            ("probe", "c0/c0_00.JPEG", "training: top-1"),
        )
    ),
    fault("unreadable image left out", "beton",
          lambda case: (image("c0/c0_00.JPEG", b"no image")(case), case.flags.update({"skip-unreadable": ""})) and None,
          "1 images cannot be read and are left out", code=0),
    *(fault("unreadable image left out", command,
            lambda case: (image("c0/c0_00.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
            text, code=0)
      for command, text in (("attack", "11 images of set A"), ("probe", "1 of 12 images"))),
    fault("unreadable image left out", "rcdm",
          lambda case: (image("c0/c0_08.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
          "1 of 12 images cannot be read", "11 images, 4 per step", code=0),
    fault("other images than before", "rcdm",
          lambda case: (image("c0/c0_08.JPEG", cut)(case), case.flags.update(skip_unreadable="")) and None,
          "--dataset_indices", "was made from something else", "another --out_dir"),
    # Classes.
    *(
        fault(f"class {what}", command, make, "made for another image folder", text)
        for what, make, text in (("missing", class_gone, "first is c1"), ("added", class_added, "first is c00"))
        for command in ("beton", "attack")
    ),
    *(fault("class without images", command, class_empty, "no image in c9")
      for command in ("partition", "beton", "attack", "probe")),
    *(fault("no class", command, no_class, "expected class folders") for command in ("partition", "attack")),
    fault("classes of one image", "partition", classes_of_one_image, "classes too small for it: 3", code=0),
    fault("class without boxes", "partition", class_without_boxes, "classes without XML: 1 (c1)", code=0),
    fault("no boxes", "partition", no_boxes, "--bbox_dir", "no XML there belongs to an image"),
    fault("no boxes", "attack", no_boxes, "--imgnet_bbox_pth", "no XML there belongs", "give --use_corner_crop 1"),
    # Index files.
    fault("index of another data set", "beton", other_data_set("idx-path"), IDX, "made for another image folder"),
    fault("index of another data set", "attack", other_data_set("bbox_A_idx_pth"), "--bbox_A_idx_pth",
          "made for another image folder"),
    fault("index of another data set", "probe", other_data_set("train_idx_pth"), "--train_idx_pth",
          "made for another image folder"),
    *(
        fault(f"index {what}", "beton", index("idx-path", content), IDX, text)
        for what, content, text in (
            ("out of range", np.array([0, 36]), "images 0 to 35"),
            ("negative", np.array([-1, 2]), "from -1 to 2"),
            ("too large for int64", np.array([2**64 - 1], np.uint64), "images 0 to 35"),
            ("duplicated", np.array([3, 4, 3]), "holds an index twice"),
            ("empty", np.array([], np.int64), "holds no index"),
            ("of decimals", np.array([0.0, 1.0]), "float64"),
            ("of two dimensions", np.zeros((2, 2), int), "(2, 2)"),
            ("of one number", np.array(3), "expected a row"),
            ("of true and false", np.array([True, False]), "bool"),
            ("of objects with code", array_with_code, "not an .npy file"),
            ("of pickled code", pickle.dumps(Payload()), "not an .npy file"),
            ("cut", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'for", "not an .npy file"),
            ("without bytes", b"", "not an .npy file"),
            ("of other content", b"1, 2, 3\n", "not an .npy file"),
            ("in an archive", archive, "an archive"),
            ("of a million billion", enormous, "not an .npy file"),
        )
    ),
    *(
        fault("index duplicated", command, index(flag, np.array([0, 1, 0])), f"--{flag}", "holds an index twice")
        for command, flag in (("attack", "bbox_A_idx_pth"), ("attack", "public_idx_pth"), ("probe", "train_idx_pth"),
                              ("rcdm", "dataset_indices"))
    ),
    fault("index empty", "probe", index("train_idx_pth", np.array([], int)), "--train_idx_pth", "holds no index"),
    fault("index empty", "probe", index("val_idx_pth", np.array([], int)), "--val_idx_pth", "holds no index"),
    fault("index empty", "attack", index("bbox_B_idx_pth", np.array([], int)), "--bbox_B_idx_pth", "holds no index"),
    fault("index empty", "attack", index("public_idx_pth", np.array([], int)), "--k 7", "only 0 images"),
    fault("index in both sets", "attack", index("bbox_A_idx_pth", np.array([4, 5])), "must be disjoint"),
    fault("index of a partition that was killed", "beton", unfinished_partition, "did not finish", "rerun it"),
    fault("k larger than the public set", "attack", changed(k=13), "--k 13", "only 12 images"),
    # Checkpoints.
    *(
        fault(f"checkpoint {what}", "attack", checkpoint("model_B_pth", content), "--model_B_pth", *texts)
        for what, content, texts in (
            ("without bytes", b"", ["not a checkpoint"]),
            ("of other content", b"epoch 1", ["not a checkpoint"]),
            *((f"cut to {share:.0%}", cut_to(share), ["not a checkpoint"]) for share in (0.001, 0.9)),
            ("with code", with_code, ["not a checkpoint", "never run"]),
            ("of bare code", bare_code, ["not a checkpoint", "never run"]),
            ("of odd types", of_odd_types, ["does not hold the network"]),
        )
    ),
    fault("checkpoint cut", "probe", checkpoint("model_pth", cut_to(0.9)), "--model_pth", "not a checkpoint"),
    fault("checkpoint missing", "rcdm", changed(ssl_model_pth=ABSENT), f"--ssl_model_pth {ABSENT}: no such file"),
    fault("checkpoint cut to 90%", "rcdm", checkpoint("ssl_model_pth", cut_to(0.9)), "--ssl_model_pth",
          "not a checkpoint"),
    fault("checkpoint with NaN", "attack", checkpoint("model_A_pth", not_finite), "--model_A_pth", "not finite"),
    fault("checkpoint with NaN", "probe", checkpoint("model_pth", not_finite), "--model_pth", "not finite"),
    *(fault(f"model.pth cut to {share:.0%}", "training", resuming(resume_cut(share)), "model.pth", "not a checkpoint")
      for share in (0.0, 0.77)),
    *(fault(f"model.pth without {key}", "training", resuming(resume_without(key)), "model.pth", text)
      for key, text in (("settings", "not written by this program"), ("optimizer", "resumed from it (no optimizer)"),
                        ("train_set", "resumed from it (no train_set)"))),
    fault("model.pth with code", "training", resuming(resume_code), "model.pth", "never run"),
    fault("model.pth with NaN", "training", resuming(resume_not_finite), "the loss is nan", "checkpoint is kept"),
    # Betons.
    *(fault(f"beton cut to {share:.1%}", "training", beton(cut_at(share)), "bad.beton: not a complete .beton")
      for share in (0, 0.01, 0.99999)),
    *(
        fault(f"beton with {what}", "training", beton(change), "bad.beton: not a complete .beton", text)
        for what, change, text in (
            ("another version", put("header", "version", 3), "version 3"),
            ("no fields", put("header", "num_fields", 0), "of types"),
            ("65535 fields", put("header", "num_fields", 65535), "version"),
            ("too many samples", put("header", "num_samples", 2**63), "truncated"),
            ("a table beyond its end", put("header", "alloc_table_ptr", 2**64 - 1), "truncated"),
            ("a table in the header", put("header", "alloc_table_ptr", 0), "images lie beyond its end"),
            ("an image beyond its end", put("table", 1, 2**40), "beyond its end"),
            ("an image that wraps around", put("table", 1, 2**64 - 8), "beyond its end"),
            ("an image of 16 EiB", put("table", 2, 2**64 - 1), "beyond its end"),
            ("a record of no image", put("image", "data_ptr", 12345), "tables disagree"),
            ("a wrong width", put("image", "width", 9), "tables disagree"),
            ("an image of no pixels", put("image", "height", 0), "no pixels"),
            ("an unknown mode", put("image", "mode", 7), "neither raw nor jpg"),
            ("a negative label", put("record", "label", -1), "labels from -1"),
            ("an enormous label", put("record", "label", 2**62), f"to {2**62}"),
        )
    ),
    fault("beton with raw called jpg", "training", elsewhere(beton(put("image", "mode", 0))), "cannot be decoded"),
    fault("beton of too few images", "training", changed(**{"training.batch_size": 13}), "only 12 images"),
    # The place to write to.
    fault("full disk (a limit)", "attack", lambda case: limit(20_000), "cannot be written"),
    *(fault("full disk (a limit)", command, lambda case: limit(200), text) for command, text in (
        ("partition", "bbox_A.npy: cannot be written"), ("beton", "x.beton: cannot be written"),
        ("attack", "cannot be written"),
        ("probe", ".pth: cannot be written"), ("rcdm", "cannot be written"))),
    fault("full disk (a limit)", "training", resuming(lambda path, content: save_checkpoint(path, content),
          lambda: limit(10**6)), "cannot be written", "disk full"),
    *(fault("full disk", command, mounted("full"), "cannot be written") for command in SCRIPTS),
    *(fault("read-only folder", command, mounted("ro"), "Read-only file system") for command in SCRIPTS),
    *(fault("file in the place of the folder", command, a_file_there, "out") for command in SCRIPTS),
    *(fault("file above the folder", command, below_a_file, "a file") for command in SCRIPTS),
    fault("folder in the place of the file", "beton", a_folder_there, "x.beton: is a folder; name a file"),
    fault("crop cache below a file", "attack", crop_cache("a file/x.npz"), "a file/x.npz: cannot be written"),
    fault("crop cache of another name", "attack", crop_cache("x.pth"), "--crop_cache", "must end in .npz"),
    *(fault("folder in use", command, in_use, f"--{SCRIPTS[command][1]}", f"process {os.getpid()}", "writes there now")
      for command in ("partition", "training", "attack", "probe", "rcdm")),
    fault("weights of another program", "rcdm", files_of_another_program, "--out_dir", "holds model000002.pt"),
    *(fault("variable that is not set", command, changed(**{SCRIPTS[command][1]: "$UNSET_1/x"}), "$UNSET_1 is not set")
      for command in SCRIPTS),
    # The machine.
    *(fault(name, command, environment(**variables), text) for name, variables, text in (
        ("left WORLD_SIZE", {"WORLD_SIZE": "2"}, "RANK is not set"),
        ("rank beyond the world", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, not a number from 0 to 1"))
      for command in ("training", "attack", "probe", "rcdm")),
    *(fault("too few open files", command, too_few_open_files, "raise ulimit -n") for command in ("probe", "rcdm")),
]  # fmt: skip


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
