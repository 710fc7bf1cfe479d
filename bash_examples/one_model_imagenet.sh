#!/usr/bin/env bash
# The test of one model on ImageNet, for a checkpoint trained on all of its training images: links training and validation
# images and their boxes into one folder each, makes the partition, keeps half of each class's validation images as unseen
# images and half as the public set, and runs one_model.sh. Not yet run on ImageNet itself.
#
#   MODEL_PTH=resnet50_fullckpt.pth NAME=vicreg EPOCH=1000 ./bash_examples/one_model_imagenet.sh
#
# IMAGENET_DATASET_DIR and IMAGENET_VAL_DIR contain CLASS/ID.JPEG, IMAGENET_BBOX_ANNOTATIONS CLASS/ID.xml, IMAGENET_VAL_BBOX
# ID.xml; the links, index files and results go to INDEX_FOLDER, BETONS_FOLDER and LOGGING_FOLDER. PER_CLASS ("100 200 300
# 400 500") are the partition's sizes. The other variables are one_model.sh's.
[[ $- == *p* ]] || exec "$BASH" -p "$0" "$@" # ignores the caller's CDPATH, BASH_ENV, shell options and functions
# shellcheck source=bash_examples/sweep_settings.sh
source "$(dirname -- "$0")/sweep_settings.sh"
need LOGGING_FOLDER BETONS_FOLDER INDEX_FOLDER
need IMAGENET_DATASET_DIR IMAGENET_VAL_DIR IMAGENET_BBOX_ANNOTATIONS IMAGENET_VAL_BBOX
[ -n "${MODEL_PTH:-}" ] || fail "the variable MODEL_PTH is not set: export MODEL_PTH=..."
case $MODEL_PTH in timm:* | torchvision:*) ;; *) [ -f "$MODEL_PTH" ] || fail "MODEL_PTH $MODEL_PTH: no such file" ;; esac
whole 1 EPOCH DATASET PER_CLASS+

linked=$INDEX_FOLDER/linked
mkdir -p "$linked"
[ -e "$linked/complete" ] || "$PYTHON" - "$linked" <<'PY'
import os
import sys
from pathlib import Path

linked = Path(sys.argv[1])
names = ("IMAGENET_DATASET_DIR", "IMAGENET_VAL_DIR", "IMAGENET_BBOX_ANNOTATIONS", "IMAGENET_VAL_BBOX")
train, val, boxes, val_boxes = (Path(os.environ[name]).resolve() for name in names)
if (boxes / "Annotation").is_dir():
    boxes = boxes / "Annotation"


def link(path, target):
    path.unlink(missing_ok=True)  # of a run that was interrupted
    path.symlink_to(target)


for folder in sorted(path for path in val.iterdir() if path.is_dir()):
    images, xmls = linked / "images" / folder.name, linked / "boxes" / folder.name
    images.mkdir(parents=True, exist_ok=True)
    xmls.mkdir(parents=True, exist_ok=True)
    link(images / "train", train / folder.name)
    link(images / "val", folder)
    for xml in (boxes / folder.name).glob("*.xml"):
        link(xmls / xml.name, xml)
    for image in folder.iterdir():
        xml = val_boxes / f"{image.stem}.xml"
        if xml.exists():
            link(xmls / xml.name, xml)
(linked / "complete").touch()
PY

export IMAGENET_DATASET_DIR=$linked/images IMAGENET_BBOX_ANNOTATIONS=$linked/boxes
if [ ! -e "$INDEX_FOLDER/public_val.npy" ]; then
  read -r -a per_class <<<"${PER_CLASS:-100 200 300 400 500}"
  # Not to stdout, which is for the commands of a dry run.
  "$PYTHON" "$root/imagenet_partition.py" --imgnet_dir "$IMAGENET_DATASET_DIR" \
    --bbox_dir "$IMAGENET_BBOX_ANNOTATIONS" --save_dir "$INDEX_FOLDER" --per_class "${per_class[@]}" >&2
  "$PYTHON" - "$IMAGENET_DATASET_DIR" "$INDEX_FOLDER" <<'PY'
import sys
from pathlib import Path

import numpy as np

from dejavu_utils.files import save_npy
from dejavu_utils.imagenet import list_images

listing, index = list_images(sys.argv[1]), Path(sys.argv[2])
val = np.array([i for i, path in enumerate(listing.paths) if "/val/" in path])
for path in index.glob("*_per_class/*.npy"):
    indices = np.load(path)
    save_npy(path, indices[~np.isin(indices, val)])
save_npy(index / "unseen.npy", val[0::2])
save_npy(index / "public_val.npy", val[1::2])
PY
fi
UNSEEN_IDX=$INDEX_FOLDER/unseen.npy PUBLIC_IDX=$INDEX_FOLDER/public_val.npy K=${K:-20} exec "$root/bash_examples/one_model.sh"
