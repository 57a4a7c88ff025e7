"""Transforms that MONAI lacks, and the way of an image through inference.yaml."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from common.data.loading import transforms
from common.data.loading.transforms import (
    MarkCleanLabeld,
    MarkLabelledd,
    Resampled,
    SaveNiftid,
    SegmentationAndUncertaintyd,
)
from tests.bundles.conftest import forget_scripts

ROOT = Path(__file__).resolve().parents[2]
INFERENCE = sorted(ROOT.glob("bundles/*/configs/inference.yaml"))
# a slanted scan: axes swapped and mirrored, turned out of the scanner's frame, voxels of unequal size
ROTATION = np.array([[0.0, -0.96, 0.28], [1.0, 0.0, 0.0], [0.0, 0.28, 0.96]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = ROTATION @ np.diag([1.2, 0.9, 2.0])
OBLIQUE[:3, 3] = (5.0, -7.0, 3.0)


@pytest.mark.parametrize(("quality", "clean"), [(None, True), ("clean", True), ("noisy", False)])
def test_clean_labels_are_marked(quality: str | None, clean: bool) -> None:
    record: dict[Hashable, Any] = {"image": "a", "label": "b"}
    if quality is not None:
        record["label_quality"] = quality
    marked = MarkCleanLabeld()(record)
    assert marked["clean"].dtype is torch.bool and bool(marked["clean"]) is clean
    assert "clean" not in record, "the record itself is left alone"


# Resampled


@pytest.mark.parametrize(
    "beside",
    [
        {"image_path": "/data/a.nii.gz"},  # annotation servers send this
        {"image_number": 3, "image_sizes": [1, 2]},
        {"image_mask": torch.ones(1, 4, 4, 4)},
        {"image_meta_dict": {"known": True}},
        {},
    ],
)
def test_resampling_survives_what_stands_beside_the_image(beside: dict[Hashable, Any]) -> None:
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4), meta={"filename_or_obj": "/data/a.nii.gz"})
    out = Resampled("image", pixdim=(0.5, 1.0, 2.0))({"image": image, "image_id": "a", **beside})
    assert out["image"].pixdim.tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert out["image_id"] == "a" and beside.keys() <= out.keys()
    for key in ("image_path", "image_number", "image_sizes", "image_mask"):
        assert out.get(key) is beside.get(key)


def test_resampling_can_be_undone() -> None:
    image = MetaTensor(torch.rand(1, 5, 6, 7), affine=torch.eye(4), meta={"filename_or_obj": "/data/a.nii.gz"})
    transform = Resampled("image", pixdim=(0.5, 0.5, 0.5))
    back = transform.inverse(transform({"image": image, "image_path": "/data/a.nii.gz"}))["image"]
    assert back.shape == image.shape
    torch.testing.assert_close(back.affine, image.affine)


# SegmentationAndUncertaintyd


@pytest.mark.parametrize("classes", [2, 4])
def test_uncertainty_is_between_certain_and_no_idea(classes: int) -> None:
    probabilities = torch.rand(classes, 3, 4, 5).softmax(0)
    probabilities[:, 0, 0, 0] = 1.0 / classes
    probabilities[:, 0, 0, 1] = torch.nn.functional.one_hot(torch.tensor(1), classes)
    out = SegmentationAndUncertaintyd()({"pred": probabilities, "other": 1})
    assert out["pred"].shape == out["uncertainty"].shape == (1, 3, 4, 5)
    assert out["pred"].dtype is torch.uint8
    assert torch.equal(out["pred"][0].long(), probabilities.argmax(0))
    assert out["uncertainty"].min() >= 0.0 and out["uncertainty"].max() <= 1.0
    assert out["uncertainty"][0, 0, 0, 0] == pytest.approx(1.0)
    assert out["uncertainty"][0, 0, 0, 1] == 0.0
    assert out["probabilities"] is probabilities and out["other"] == 1


def test_uncertainty_by_hand() -> None:
    """Entropy of (0.9, 0.1) over log 2: (0.9 x 0.10536 + 0.1 x 2.30259) / 0.69315 = 0.46900."""
    out = SegmentationAndUncertaintyd()({"pred": torch.tensor([0.9, 0.1]).reshape(2, 1, 1)})
    assert out["uncertainty"].item() == pytest.approx(0.46900, abs=1e-5)


def test_the_space_is_kept() -> None:
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    pred = MetaTensor(torch.rand(2, 3, 3, 3).softmax(0), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    out = SegmentationAndUncertaintyd()({"pred": pred})
    for key in ("pred", "uncertainty"):
        torch.testing.assert_close(out[key].affine, affine)
        assert out[key].meta["filename_or_obj"] == "a.nii.gz"


# SaveNiftid


@pytest.mark.parametrize(("dtype", "kind"), [("float32", np.float32), ("uint8", np.uint8)])
def test_what_is_saved_lies_where_it_was(dtype: str, kind: type, tmp_path: Path) -> None:
    values = torch.arange(60.0).reshape(1, 3, 4, 5)
    image = MetaTensor(values, affine=torch.from_numpy(OBLIQUE), meta={"filename_or_obj": "/data/case_1.nii.gz"})
    SaveNiftid("pred", str(tmp_path), "pred", dtype)({"pred": image})
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "case_1/case_1_pred.nii.gz"
    ]
    saved = nib.Nifti1Image.from_filename(tmp_path / "case_1" / "case_1_pred.nii.gz")
    np.testing.assert_allclose(saved.affine, OBLIQUE, atol=1e-5)
    assert saved.get_data_dtype() == kind
    np.testing.assert_array_equal(np.asarray(saved.dataobj), values[0].numpy())


def test_an_image_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = MetaTensor(torch.ones(1, 3, 4, 5), meta={"filename_or_obj": "/data/case_1.nii.gz"})
    save = SaveNiftid("pred", str(tmp_path), "pred")
    save({"pred": image})
    target = tmp_path / "case_1" / "case_1_pred.nii.gz"
    before = target.read_bytes()

    def run_out_of_space(self: Any, filename: Path, **kwargs: Any) -> None:
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(transforms.NibabelWriter, "write", run_out_of_space)
    with pytest.raises(Exception, match="No space left|SaveImage cannot find a suitable writer"):
        save({"pred": image * 2.0})
    assert target.read_bytes() == before
    assert list(target.parent.iterdir()) == [target]


def test_it_is_monais_saver() -> None:
    assert issubclass(SaveNiftid, SaveImaged)


# the way through inference.yaml


def inference(config: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Pre- and postprocessing of a bundle's inference.yaml."""
    parser = ConfigParser(ConfigParser.load_config_file(config))
    parser["output_dir"] = str(folder)
    for key, value in changes.items():
        parser[key] = value
    return {key: parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing")}


@pytest.mark.parametrize("config", INFERENCE, ids=lambda path: path.parents[1].name)
def test_an_oblique_image_comes_back_in_its_own_space(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bright ball goes through preprocessing, a stand-in for the network and postprocessing: it must not move."""
    metadata = json.loads(config.with_name("metadata.json").read_text())["network_data_format"]
    channels = metadata["inputs"]["image"]["num_channels"]
    classes = metadata["outputs"]["pred"]["num_channels"]
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(36), np.arange(17), indexing="ij"), -1)
    ball = np.linalg.norm((grid - (11, 22, 7)) * (1.2, 0.9, 2.0), axis=-1) < 7.0  # radius 7 mm, off the centre
    volume = np.repeat(ball[..., None].astype(np.float32) * 100.0, channels, -1).squeeze()
    source = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume, OBLIQUE), source)

    monkeypatch.syspath_prepend(config.parents[1])  # the bundle's own transforms
    forget_scripts()
    way = inference(config, tmp_path / "out")
    forget_scripts()
    item = way["preprocessing"]({"image": str(source), "image_path": str(source)})
    assert item["image"].shape[0] == channels
    shown = item["image"][:1]
    bright = (shown > (shown.min() + shown.max()) / 2).float() * 20.0 - 10.0
    logits = torch.cat([-bright, bright, *[torch.full_like(bright, -20.0)] * (classes - 2)])
    out = way["postprocessing"](item | {"pred": logits})

    assert out["pred"].shape == (1, *ball.shape)
    for postfix in ("pred", "uncertainty"):
        saved = nib.Nifti1Image.from_filename(tmp_path / "out" / "scan" / f"scan_{postfix}.nii.gz")
        assert saved.shape == ball.shape
        np.testing.assert_allclose(saved.affine, OBLIQUE, atol=1e-4)
    found = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "out" / "scan" / "scan_pred.nii.gz").dataobj) == 1
    dice = 2.0 * (found & ball).sum() / (found.sum() + ball.sum())
    assert dice > 0.9, "a shift by one voxel gives less"


def test_images_without_a_label_get_background() -> None:
    image, label = torch.rand(2, 3, 4), torch.ones(1, 3, 4)
    without = MarkLabelledd()({"image": image})
    assert not without["labelled"] and without["label"].shape == (1, 3, 4) and float(without["label"].sum()) == 0.0
    given = MarkLabelledd()({"image": image, "label": label})
    assert given["labelled"] and given["label"] is label


def test_a_map_is_called_after_its_image(tmp_path: Path) -> None:
    """Labels in the form of nnU-Net are not called as their images are."""
    image = MetaTensor(torch.zeros(1, 3, 3, 3), meta={"filename_or_obj": "images/case_1_0000.nii.gz"})
    label = MetaTensor(torch.ones(1, 3, 3, 3), meta={"filename_or_obj": "labels/case_1.nii.gz"})
    data = SaveNiftid("label", str(tmp_path), "label", "uint8", like="image")({"image": image, "label": label})
    assert data["label"] is label and label.meta["filename_or_obj"] == "labels/case_1.nii.gz"
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.nii.gz")] == [
        "case_1_0000/case_1_0000_label.nii.gz"
    ]


@pytest.mark.parametrize("shape", [(1, 5, 4, 1), (1, 1, 4, 3), (2, 5, 4, 1)])
def test_axes_of_one_voxel_are_kept(shape: tuple[int, ...], tmp_path: Path) -> None:
    image = MetaTensor(torch.rand(shape), meta={"filename_or_obj": "flat.nii.gz"})
    SaveNiftid("pred", str(tmp_path), "pred")({"pred": image})
    saved = nib.Nifti1Image.from_filename(tmp_path / "flat" / "flat_pred.nii.gz")
    assert saved.shape == (shape[1:] if shape[0] == 1 else (*shape[1:], shape[0]))
