"""A plan for each bundle's phantom, measured by real steps, and a training that starts with it."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml

from common.data.contract.dataset import read_data
from common.data.contract.plan import make_plan
from common.data.contract.plan.guide import read_guide
from common.data.contract.plan.probe import Probe
from tests.bundles.conftest import ONE_BUNDLE_ALWAYS, ROOT, Bundle


@pytest.mark.parametrize("bundle", ONE_BUNDLE_ALWAYS, indirect=True)
def test_a_training_starts_with_the_plan(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "plan.yaml"
    plan = make_plan(bundle.dataset, bundle.name, memory=6, minutes=2, output=path)
    written = yaml.safe_load(path.read_text())
    assert written == {key: choice.value for key, choice in plan.choices.items()}
    assert written["num_classes"] == 4 and written["in_channels"] == 1
    assert 0 < plan.outcome.memory < 6e9 and plan.outcome.seconds > 0
    folders = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "dataset_dir": str(bundle.dataset)}
    with bundle.imported():
        monai.bundle.run(
            run_id="training",
            config_file=[*bundle.files("train"), str(path)],
            logging_file=False,
            **{**folders, "max_epochs": 1, "epoch_length": 1, "val_interval": 1},
        )
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["alc"], indirect=True)
def test_a_probe_measures_what_a_training_takes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    data, _ = read_data(bundle.dataset)
    probe = Probe(
        read_guide(bundle.name).root,
        data.training,
        data.validation,
        {"dataset_dir": str(bundle.dataset), "passes": 2, "device": "$torch.device('cpu')"},
    )
    small, large = (probe({"patch_size": [side, side, side]}, 3) for side in (16, 64))
    assert large.memory > small.memory + 50e6 and min(small.step, large.step) > 0
    assert small.base <= small.memory and min(small.load, small.validate, small.start) > 0
    voxels = 64**3  # padded to the patch: an image in float32, a label in a byte
    assert 5 * voxels <= large.cached <= 6 * voxels and not large.cuda
