"""Every stage on one tiny data set: its script, flags that are all right, and what it is given."""

from helpers import draw_tree, flags, ok, options, run_here, save_untrained

TRAINING = options("""--model.arch test_resnet --model.mlp 32-16 --training.loss simclr --training.precision fp32
    --resolution.min_res 32 --resolution.max_res 32 --validation.resolution 32 --data.num_workers 1
    --training.batch_size 4 --training.epochs 2 --training.warmup_epochs 1 --logging.log_level 1""")
PICTURES = options("--resolution 32 --num_workers 0 --local 1")
SMALL_ATTACK = {**PICTURES, "k": 7, "k_attk": 5, "min_px": 10}
SMALL_RCDM = options("""--local 1 --ssl_resolution 32 --workers 0 --batch_size 4 --image_size 32 --num_channels 32
    --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 16 --backend diffusers --timestep_respacing 2
    --log_interval 1""")
SCRIPTS = {
    "partition": ("imagenet_partition.py", "save_dir"),
    "beton": ("write_ffcv_dataset.py", "write-path"),
    "training": ("train_SSL.py", "logging.folder"),
    "attack": ("label_inference_attack.py", "output_dir"),
    "probe": ("lin_probe.py", "output_dir"),
    "rcdm": ("train_RCDM.py", "out_dir"),
}


def attack_settings(folder, out, **changes):
    """The attack's flags on A.pth, B.pth, A.npy, B.npy, public.npy, images/ and boxes/ of one folder."""
    values = {f"model_{side}_pth": folder / f"{side}.pth" for side in "AB"}
    values |= {f"bbox_{side}_idx_pth": folder / f"{side}.npy" for side in "AB"}
    values |= {"public_idx_pth": folder / "public.npy", "imgnet_train_pth": folder / "images"}
    return {**SMALL_ATTACK, **values, "imgnet_bbox_pth": folder / "boxes", "output_dir": out, **changes}


def plot_settings(folder, out, **changes):
    """The plot's flags on the attack of one point, of 4 images per class after 1 epoch, below folder."""
    values = {"model": "simclr", "k_neighb": 5, "epoch_sweep_dataset": 4, "dataset_sweep_epoch": 1}
    return {**values, "plot_lin_probe": 0, "attk_folder_path": folder, "save_path": out, **changes}


def settings(command, data, made, out):
    """The flags of a command that is all right. data: images, boxes and index; made: betons and checkpoints."""
    index = data / "index/4_per_class"
    pictures = {**PICTURES, "imgnet_train_pth": data / "images"}
    twins = {
        **pictures,
        **{f"model_{model}_pth": made / f"{model}.pth" for model in "AB"},
        **{f"bbox_{name}_idx_pth": index / f"bbox_{name}.npy" for name in "AB"},
        "public_idx_pth": index / "public.npy",
        "output_dir": out,
    }
    return {
        "partition": {"imgnet_dir": data / "images", "bbox_dir": data / "boxes", "per_class": 4, "save_dir": out},
        "beton": {
            "imgnet-path": data / "images",
            "idx-path": index / "train_A.npy",
            "write-path": out / "x.beton",
            "num-workers": 1,
        },
        "training": {
            **TRAINING,
            "data.train_dataset": made / "train.beton",
            "data.val_dataset": made / "val.beton",
            "logging.folder": out,
        },
        "attack": {**twins, **SMALL_ATTACK, "imgnet_bbox_pth": data / "boxes"},
        "probe": {
            **pictures,
            "model_pth": made / "A.pth",
            "train_idx_pth": index / "train_A.npy",
            "val_idx_pth": data / "index/val_set.npy",
            "epochs": 1,
            "output_dir": out,
        },
        "sslmem": {**twins, "views": 3, "batch_size": 9},
        "rcdm": {
            **SMALL_RCDM,
            "feat_cond": "",
            "ssl_model_pth": made / "A.pth",
            "data_dir": data / "images",
            "dataset_indices": index / "public.npy",
            "world_size": 1,
            "lr_anneal_steps": 2,
            "save_interval": 1,
            "out_dir": out,
        },
    }[command]


def call(command, values):
    return run_here(SCRIPTS[command][0], *flags(values))


def make_tiny(root):
    """Makes the one data set that test files share, below root: data (images, boxes, index of 4 a class) and made.

    36 images of 3 classes, 24 of them with a box; betons of set A and of the validation set, and two untrained models.
    """
    data, made = draw_tree(root / "data"), root / "made"
    ok(call("partition", settings("partition", data, made, data / "index")))
    made.mkdir()
    for seed, model in enumerate("AB"):
        save_untrained(made / f"{model}.pth", seed)
    for name, index in (("train", "4_per_class/train_A.npy"), ("val", "val_set.npy")):
        values = {**settings("beton", data, made, made), "idx-path": data / "index" / index}
        ok(call("beton", {**values, "write-path": made / f"{name}.beton"}))
    return root
