"""A plan for each bundle's phantom, measured by real steps, and a training that starts with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from common.data.contract.plan import make_plan
from common.data.contract.plan.guide import read_guide
from common.data.contract.plan.probe import Probe

from .conftest import ONE_BUNDLE_ALWAYS, ROOT, Bundle


@pytest.mark.parametrize("bundle", ONE_BUNDLE_ALWAYS, indirect=True)
def test_a_training_starts_with_the_plan(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "plan.yaml"
    plan = make_plan(bundle.dataset, bundle.name, memory=6, minutes=1, output=path)
    written = yaml.safe_load(path.read_text())
    assert written == {key: choice.value for key, choice in plan.choices.items()}
    assert written["num_classes"] == 4 and written["in_channels"] == 1
    assert plan.outcome.memory < 6e9 and plan.outcome.seconds < 60
    folders = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "dataset_dir": str(bundle.dataset)}
    with bundle.imported():
        from monai.bundle import run

        files = [*bundle.files("train"), str(path)]
        run(
            run_id="training",
            config_file=files,
            logging_file=False,
            max_epochs=1,
            epoch_length=1,
            val_interval=1,
            **folders,
        )
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())


def test_larger_patches_take_more_memory_and_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    if bundle.name != "alc":
        pytest.skip("one bundle shows how a probe measures")
    monkeypatch.chdir(ROOT)
    guide = read_guide(bundle.name)
    records = {"clean": "training", "noisy": "training"}
    from common.data.contract.dataset import read_data

    data, _ = read_data(bundle.dataset)
    assert records
    probe = Probe(guide.root, data.training, data.validation, {"dataset_dir": str(bundle.dataset), "num_workers": 0})
    small, large = (probe({"patch_size": [16 * times] * 3, "passes": 1}, 3) for times in (1, 4))
    assert large.memory > small.memory + 10e6 and large.step > 3 * small.step
    assert small.base <= small.memory and small.load > 0 and small.validate > 0 and small.start > 0
    voxels = 64**3  # padded to the patch: float32 image, uint8 label
    assert voxels * 5 <= large.cached <= voxels * 6
