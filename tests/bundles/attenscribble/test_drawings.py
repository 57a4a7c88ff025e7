"""What an annotation tool sends: images and labels with some strokes in them, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import make_phantom
from tests.bundles.conftest import Bundle


@pytest.fixture(scope="module")
def attenscribble(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle("attenscribble", tmp_path_factory.mktemp("attenscribble"))


def draw(folder: Path, count: int) -> list[dict[str, str]]:
    """Strokes of every class on every third slice: structures by their numbers, background by the number of classes."""
    data = make_phantom(folder / "phantom", kind="scribbles", shape=(24, 24, 16))
    records = []
    for record in json.loads((data / "dataset.json").read_text())["training"][:count]:
        scribble = nib.Nifti1Image.from_filename(data / record["scribble"])
        values = np.asarray(scribble.dataobj)
        drawn = np.where(values == 255, 0, np.where(values == 0, 4, values)).astype(np.uint8)
        drawn[..., np.arange(drawn.shape[-1]) % 3 > 0] = 0
        path = folder / f"{Path(record['image']).name}"
        nib.save(nib.Nifti1Image(drawn, scribble.affine), path)
        records.append({"image": str(data / record["image"]), "label": str(path)})
    return records


def test_strokes_on_a_few_slices_train_a_model(attenscribble: Bundle, tmp_path: Path) -> None:
    records = draw(tmp_path, 4)
    folders = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    overrides = attenscribble.tiny("train", **folders) | attenscribble.small_network
    overrides |= {"train#dataset#data": records[:3], "validate#dataset#data": records[3:]}
    overrides |= {"radius": 2, "sigma_position": 2.0, "epoch_length": 15, "slice_size": [32, 32]}
    attenscribble.run("run", "train", **overrides, max_epochs=3)
    with (tmp_path / "eval" / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    partial = [float(row["value"]) for row in history if row["name"] == "loss/partial"]
    labelled = [float(row["value"]) for row in history if row["name"] == "monitor/labelled"]
    assert all(0.0 < share < 0.5 for share in labelled), "what is not drawn was taken for background"
    assert np.mean(partial[-5:]) < 0.8 * np.mean(partial[:5])
    dice = [float(row["value"]) for row in history if row["name"] == "validation/mean_dice"]
    assert len(dice) == 3 and all(0.0 <= value <= 1.0 for value in dice)
    assert (tmp_path / "models" / "model.pt").is_file()
