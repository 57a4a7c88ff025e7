"""What the tests of all bundles share: which bundles there are, a tiny data set for each and how to run one.

Bundles are discovered: a new folder ``bundles/<name>`` is tested as soon as it has ``configs/metadata.json``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from common.data import make_phantom

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
# for tests of half a minute: one bundle's in every run of the tests, the others' with -m slow
ALWAYS = "alc"
ONE_BUNDLE_ALWAYS = [pytest.param(name, marks=[pytest.mark.slow] if name != ALWAYS else []) for name in BUNDLES]
CASES = {"training": 6, "validation": 1, "test": 1}
SHAPE = (24, 24, 16)  # voxels
STAGES = {"filters": [4, 8, 8], "strides": [1, 2, 2], "kernels": [3, 3, 3]}
SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "common.networks.VNet": {"network_def#base_filters": 4},
    # it halves the patch five times
    "monai.networks.nets.SwinUNETR": {"network_def#feature_size": 12, "patch_size": [32, 32, 32]},
    "monai.networks.nets.SegResNet": {"network_def#init_filters": 8},
    "monai.networks.nets.DynUNet": STAGES,
    "monai.networks.nets.AttentionUnet": STAGES,
    "scripts.baselines.UNetPlusPlus": {"network_def#features": [4, 4, 4, 4, 4, 4]},
    "scripts.network.UMamba": STAGES,
    "scripts.network.AffinityUMamba": STAGES | {"mamba_levels": [0, 1]},
    "scripts.network.AttentiveUNet": {"network_def#filters": 2},
    "scripts.network.MultiCURENet": {"network_def#base_filters": 4},
    "scripts.network.ProbabilisticUNet": {
        "network_def#backbone": "resnet10",
        "network_def#decoder_channels": [16, 8, 8, 8, 8],
        "network_def#prior_channels": [4, 8],
    },
}


class Bundle:
    """One bundle of the repository and a folder of its own for all that it writes.

    Args:
        name: name of the bundle.
        folder: empty folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = ROOT / "bundles" / name
        self.configs = self.root / "configs"
        self.folder = folder
        self.train = self.load("train")
        self.dataset = make_phantom(
            folder / "data", kind=self.train["data"]["phantom"], shape=SHAPE, cases=CASES, noise_radius=(1.0, 1.5)
        )
        self.images = folder / "images"  # to segment: two are enough
        self.images.mkdir()
        for image in sorted((self.dataset / "images").iterdir())[:2]:
            shutil.copy(image, self.images)

    @property
    def small_network(self) -> dict[str, Any]:
        """Overrides that give the same network fewer channels, where the test is not about the network."""
        return self.small("train")

    def small(self, *names: str) -> dict[str, Any]:
        """The same for the network of these configs."""
        network = ConfigParser.load_config_files([ROOT / file for file in self.files(*names)])["network_def"]
        return SMALL_NETWORKS.get(network.get("network", network["_target_"]), {})

    def files(self, *names: str) -> list[str]:
        """Config files as they are typed at the root of the repository."""
        return [f"bundles/{self.name}/configs/{name}.yaml" for name in names]

    def load(self, name: str) -> dict[str, Any]:
        """A config file as it stands."""
        return dict(ConfigParser.load_config_file(self.configs / f"{name}.yaml"))

    def tiny(self, *names: str, **overrides: Any) -> dict[str, Any]:
        """Overrides that make a run of these configs take seconds; only keys that the configs have."""
        config = ConfigParser.load_config_files([ROOT / file for file in self.files(*names)])
        values = {
            "dataset_dir": str(self.images if "inference" in names else self.dataset),
            "ckpt_dir": str(self.folder / "models"),
            "output_dir": str(self.folder / "eval"),
            "num_classes": self.train["num_classes"],
            "in_channels": self.train["in_channels"],
            "device": "$torch.device('cpu')",
            "epoch_length": 1,
            "val_interval": 1,
            "num_workers": 0,
        }
        if "spacing" in config:  # a data set's own would leave the phantom too few slices
            values["spacing"] = self.train["spacing"]
        side = 32 if "unet_plus_plus" in names else 16  # its instance normalisation takes no single voxel
        values |= {key: [side] * len(config[key]) for key in ("patch_size", "slice_size") if key in config}
        return {key: value for key, value in values.items() if key in config} | overrides

    def run(self, run_id: str, *names: str, **overrides: Any) -> None:
        """``python -m monai.bundle run RUN_ID --config_file ...`` in this process."""
        with self.imported():
            arguments: dict[str, Any] = {"config_file": self.files(*names), "logging_file": False}
            monai.bundle.run(run_id=run_id, **arguments, **overrides)

    @contextmanager
    def imported(self) -> Iterator[None]:
        """The bundle's package ``scripts`` can be imported inside; it is forgotten after, for the next bundle's."""
        path, folder = list(sys.path), Path.cwd()
        sys.path.insert(0, str(self.root))
        os.chdir(ROOT)
        forget_scripts()
        try:
            yield
        finally:
            os.chdir(folder)
            sys.path[:] = path
            forget_scripts()


def forget_scripts() -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[module]


@pytest.fixture(scope="session", params=BUNDLES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(request.param, tmp_path_factory.mktemp(request.param))
