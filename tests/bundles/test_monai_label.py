"""What MONAI Label 0.8 does with a bundle: its overrides, its choice of weights, its scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.conftest import ROOT


def handed_over(bundle: Any) -> list[dict[str, str]]:
    """Records as the server sends them: image and label, and nothing else."""
    content = json.loads((bundle.dataset / "dataset.json").read_text())
    return [{key: str(bundle.dataset / record[key]) for key in ("image", "label")} for record in content["test"]]


def test_trains_twice_without_a_data_set_of_its_own(
    bundle: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """3D Slicer sends an empty run id: MONAI then evaluates the whole config."""
    overrides = bundle.tiny("train") | bundle.small_network
    for key in ("dataset_dir", "ckpt_dir", "output_dir"):
        del overrides[key]
    records = handed_over(bundle)
    overrides |= {"bundle_root": str(tmp_path), "train#trainer#max_epochs": 1}
    overrides |= {"train#dataset#data": records, "validate#dataset#data": records}
    for _ in range(2):
        bundle.run("", "train", **overrides)
    assert not (tmp_path / "data").exists() and "phantom" not in caplog.text
    # the server offers every *.pt, the shortest name first, and loads the first if not told otherwise
    names = sorted((path.name for path in (tmp_path / "models").glob("*.pt")), key=len)
    assert names[0] == "model.pt" and len(names[1]) > len(names[0])
    weights = [path for path in (tmp_path / "models").glob("*.pt") if path.is_file()]
    assert all(isinstance(torch.load(path, weights_only=True), dict) for path in weights)


@pytest.mark.parametrize("validation", [None, []], ids=["not handed over", "empty"])
def test_foreign_records_are_not_validated_on_the_phantom(
    bundle: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, validation: list[Any] | None
) -> None:
    """The server's ``val_split`` -1 leaves the validation's records to the bundle."""
    overrides = bundle.tiny("train") | bundle.small_network
    for key in ("dataset_dir", "ckpt_dir", "output_dir"):
        del overrides[key]
    overrides |= {"bundle_root": str(tmp_path), "train#trainer#max_epochs": 1}
    overrides |= {"train#dataset#data": handed_over(bundle)}
    if validation is not None:
        overrides["validate#dataset#data"] = validation
    bundle.run("run", "train", **overrides)
    assert not (tmp_path / "data").exists() and "phantom" not in caplog.text
    assert "validation/" not in (tmp_path / "eval" / "history.csv").read_text()
    final, best = (torch.load(tmp_path / "models" / name, weights_only=True) for name in ("model_final.pt", "model.pt"))
    assert all(torch.equal(final[name], best[name]) for name in final)


@pytest.mark.parametrize("first", ["train#dataset#data", "validate#dataset#data"])
def test_the_phantoms_own_records_are_validated_on_it(bundle: Any, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setattr("common.data.contract.open.make_phantom", lambda directory, kind: bundle.dataset)
    parser = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files("train")]))
    with bundle.imported():
        parser.get_parsed_content(first)
        records = parser.get_parsed_content("validate#dataset#data")
    assert [Path(record["image"]).name for record in records] == ["case_006.nii.gz"]


def test_learning_rate_follows_the_trainers_length(bundle: Any) -> None:
    """The server sets ``train#trainer#max_epochs`` alone; the rate at the same share of it must not depend on it."""

    def rate_at_the_same_share(max_epochs: int) -> float:
        parser = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files("train")]))
        for key, value in ({"train#trainer#max_epochs": max_epochs} | bundle.small_network).items():
            parser[key] = value
        scheduler = parser.get_parsed_content("lr_scheduler")
        scheduler.optimizer.step()
        for _ in range(int(0.6 * max_epochs * parser["epoch_length"])):
            scheduler.step()
        return float(scheduler.optimizer.param_groups[0]["lr"])

    with bundle.imported():
        assert rate_at_the_same_share(10) == pytest.approx(rate_at_the_same_share(50))


def test_scoring_takes_one_image_in_training_mode(bundle: Any) -> None:
    """Epistemic scoring: dropout on, no gradient, one image at a time."""
    parser = ConfigParser(ConfigParser.load_config_files([ROOT / file for file in bundle.files("inference")]))
    for key, value in bundle.small_network.items():
        parser[key] = value
    with bundle.imported(), torch.no_grad():
        network = parser.get_parsed_content("network_def").train()
        dims = 3 if any(isinstance(module, torch.nn.Conv3d) for module in network.modules()) else 2
        image = torch.rand(1, parser["in_channels"], *[32] * dims)
        assert torch.isfinite(network(image)).all()
