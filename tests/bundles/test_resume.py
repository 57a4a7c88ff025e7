"""A training that is killed and resumed is, to the bit, one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundles.conftest import ONE_BUNDLE_ALWAYS, ROOT

EPOCHS, EPOCH_LENGTH = 3, 2
KILLED_AT = 4  # the second iteration of the second epoch
# nothing is caught, closed or flushed: what a power cut or the killer of memory hogs does
KILL = """
+imports: [$import os, $import signal, $from ignite.engine import Events]
+train#handlers:
- _target_: types.SimpleNamespace
  attach: "$lambda engine: engine.add_event_handler(
    Events.ITERATION_COMPLETED(once={iteration}), lambda: os.kill(os.getpid(), signal.SIGKILL))"
"""


def train(bundle: Any, folder: Path, *overlays: Path, **overrides: Any) -> int:
    """Train from the command line; the exit status, the output shown if it is not what a kill gives."""
    settings = bundle.tiny("train", ckpt_dir=str(folder / "models"), output_dir=str(folder / "eval"))
    settings |= bundle.small_network | {"max_epochs": EPOCHS, "epoch_length": EPOCH_LENGTH} | overrides
    files = [*bundle.files("train"), *map(str, overlays)]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout[-3000:] + done.stderr[-6000:]
    return done.returncode


@pytest.mark.parametrize("bundle", ONE_BUNDLE_ALWAYS, indirect=True)
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_killed_and_resumed_is_the_same_as_uninterrupted(bundle: Any, tmp_path: Path) -> None:
    overlay = tmp_path / "kill.yaml"
    overlay.write_text(KILL.format(iteration=KILLED_AT))
    broken, whole = tmp_path / "broken", tmp_path / "whole"

    assert train(bundle, broken, overlay) == -signal.SIGKILL
    assert torch.load(broken / "models" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert not (broken / "models" / "model_final.pt").exists()

    assert train(bundle, broken, resume=True) == 0
    assert train(bundle, whole) == 0
    found, expected = (torch.load(folder / "models" / "last.ckpt", weights_only=True) for folder in (broken, whole))
    assert expected["iteration"] == EPOCHS * EPOCH_LENGTH
    # method, optimiser, schedule, best metric and what else there is; torch cannot compare the words of settings
    for words in ("method_settings", "run_settings"):
        assert found.pop(words) == expected.pop(words)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
    for name in ("model.pt", "model_final.pt"):
        weights = [torch.load(folder / "models" / name, weights_only=True) for folder in (broken, whole)]
        torch.testing.assert_close(*weights, rtol=0.0, atol=0.0)
    assert (broken / "eval" / "history.csv").read_bytes() == (whole / "eval" / "history.csv").read_bytes()
