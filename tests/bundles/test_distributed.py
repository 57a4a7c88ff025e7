"""Training in two processes with multi_gpu_train.yaml, on the CPU."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data import make_phantom
from tests.bundles.conftest import ONE_BUNDLE_ALWAYS, ROOT

# after training every process leaves what it holds
DUMP = """
training:
- $@train#trainer.run()
- "$torch.save({{'method': @method.state_dict(), 'scalars': @train#trainer.state.output[0]['scalars'],
  'best': @validate#evaluator.state.best_metric}}, f'{folder}/rank_{{dist.get_rank()}}.pt')"
"""


@pytest.mark.parametrize("bundle", ONE_BUNDLE_ALWAYS, indirect=True)
@pytest.mark.parametrize("validation_cases", [1, 3], ids=["fewer cases than processes", "cases shared unevenly"])
def test_two_processes_train_one_method(bundle: Any, validation_cases: int, tmp_path: Path) -> None:
    if not (bundle.configs / "multi_gpu_train.yaml").exists():
        pytest.skip("this bundle has no configuration for several GPUs")
    cases = {"training": 6, "validation": validation_cases, "test": 1}
    data = make_phantom(tmp_path / "data", bundle.train["data"]["phantom"], cases=cases, shape=(24, 24, 16))
    overlay = tmp_path / "dump.yaml"
    overlay.write_text(DUMP.format(folder=tmp_path))
    settings = bundle.tiny("train", dataset_dir=str(data), ckpt_dir=str(tmp_path), output_dir=str(tmp_path))
    settings |= bundle.small_network | {"max_epochs": 2, "epoch_length": 2, "seed": 1}

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "training"]
    command += ["--config_file", str([*bundle.files("train", "multi_gpu_train"), str(overlay)])]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    ranks = [torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(value.isfinite().all() for value in ranks[0]["method"].values())
    # the network, its teacher if it has one, and their running statistics
    torch.testing.assert_close(ranks[0]["method"], ranks[1]["method"], rtol=0.0, atol=0.0)
    assert ranks[0]["scalars"] != ranks[1]["scalars"], "both processes trained on the same cases"
    assert ranks[0]["best"] == ranks[1]["best"], "the metric of one process is not that of all cases"

    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(math.isfinite(float(row["value"])) for row in rows)
    measured: dict[str, list[str]] = {}
    for row in rows:
        if row["name"].startswith("validation/"):
            measured.setdefault(row["name"], []).append(row["epoch"])
    assert measured and all(epochs == ["1", "2"] for epochs in measured.values())
    assert {path.name for path in tmp_path.iterdir()} >= {"model.pt", "model_final.pt", "last.ckpt"}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1, "one process alone writes"
