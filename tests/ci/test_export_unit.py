"""What spatial sizes an export's metadata allow: those that its network takes, whatever the overlays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from torch import nn

from bundles.affinity_umamba.scripts.network import AffinityUMamba
from ci.export import ROOT, ExportError, export_bundle
from ci.export.formats import FormatError, Subject, differences
from ci.export.unit import UnitError, find_unit, read_strides

STRIDES: list[Any] = [1, [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 1]]  # as for ACDC


class Picky(nn.Module):
    """Takes sizes that are multiples of ``steps``, and gives them back, less ``lost`` voxels an axis."""

    def __init__(self, *steps: int, lost: int = 0) -> None:
        super().__init__()
        self.steps, self.lost = steps, lost

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sizes = image.shape[2:]
        if any(size % step for size, step in zip(sizes, self.steps, strict=True)):
            raise ValueError(f"no multiple of {self.steps}.\nMore words.")
        return image[..., : sizes[-1] - self.lost]


@pytest.mark.parametrize(
    ("steps", "start", "unit"),
    [
        ((32, 32, 4), [32, 32, 4], [32, 32, 4]),
        ((12, 4), [12, 4], [12, 4]),
        ((32, 32, 32), [32, 32, 4], [32, 32, 32]),
        ((8, 8, 64), [8, 8, 8], [64, 64, 64]),
        ((1, 1), [8, 8], [8, 8]),
    ],
)
def test_the_unit_is_the_least_that_the_network_takes(
    steps: tuple[int, ...], start: list[int], unit: list[int]
) -> None:
    assert find_unit(Picky(*steps), 1, start) == unit


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Picky(7, 7), r"such as of \[192, 64\]: no multiple of \(7, 7\)\.$"),
        (Picky(1, 1, lost=1), r"becomes \[192, 63\]"),
    ],
)
def test_a_network_that_takes_nothing(network: nn.Module, words: str) -> None:
    with pytest.raises(UnitError, match=words):
        find_unit(network, 1, [8, 8])


@pytest.mark.parametrize("strides", ["@strides", "$@strides[1:]", STRIDES])
def test_strides_are_read_however_they_are_named(strides: Any) -> None:
    assert read_strides(ConfigParser({"strides": STRIDES, "network_def": {"strides": strides}}), 3) == [32, 32, 4]
    assert read_strides(ConfigParser({"strides": STRIDES, "network_def": {}}), 3) == [8, 8, 8]


def test_a_size_that_is_refused_is_named() -> None:
    subject = Subject(Picky(32, 32), 1, (16, 16))
    with pytest.raises(FormatError, match=r"^an image of \[1, 1, 48, 32\] is refused: no multiple of \(32, 32\)\.$"):
        list(differences(subject, subject.network))


def sizes(exported: Path) -> list[list[str]]:
    content = json.loads((exported / "configs" / "metadata.json").read_text())["network_data_format"]
    return [content["inputs"]["image"]["spatial_shape"], content["outputs"]["pred"]["spatial_shape"]]


@pytest.mark.parametrize(
    ("name", "overlays", "expected"),
    [
        ("affinity_umamba", ["acdc"], ["32*n", "32*n", "4*n"]),
        ("affinity_umamba", ["acdc", "swin_unetr"], ["32*n", "32*n", "32*n"]),
        ("alc", ["swin_unetr"], ["32*n", "32*n", "32*n"]),  # its dropout is no key of inference.yaml
        ("affinity_umamba", ["no_iae"], ["16*n", "16*n", "16*n"]),
    ],
    ids=str,
)
def test_metadata_say_what_sizes_the_network_takes(
    name: str, overlays: list[str], expected: list[str], tmp_path: Path
) -> None:
    paths = [ROOT / "bundles" / name / "configs" / f"{overlay}.yaml" for overlay in overlays]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": dict(enumerate("abcd"))}))
    exported, _ = export_bundle(name, tmp_path / "out", without_weights=True, overlay=paths, dataset_dir=tmp_path)
    assert sizes(exported) == [expected, expected]


def test_a_network_that_gives_other_sizes_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3}
    overlay.write_text(yaml.safe_dump({"network_def": network}))
    with pytest.raises(ExportError, match=r"takes no image.* becomes \[190, 62\]\. Fix: give overlays that fit"):
        export_bundle("attenscribble", tmp_path / "out", without_weights=True, overlay=[overlay])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_formats_are_checked_at_sizes_that_the_network_takes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"filters": [4] * 6, "strides": STRIDES, "kernels": [3] * 6, "mamba_levels": []}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(0)
    torch.save(AffinityUMamba(out_channels=4, **settings).state_dict(), tmp_path / "model.pt")
    exported, _ = export_bundle(
        "affinity_umamba",
        tmp_path / "out",
        weights=tmp_path / "model.pt",
        overlay=[tmp_path / "own.yaml"],
        torchscript=True,
    )
    assert sizes(exported)[0] == ["32*n", "32*n", "4*n"]
    assert (exported / "models" / "model.ts").is_file()
