"""The benchmark of ensembles and mirrored answers, on images that are resampled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from ci.benchmarks.ensembles import main
from common.data import make_phantom

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "alc"


def test_every_answer_is_measured_in_the_labels_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(BUNDLE), *sys.path])
    data = make_phantom(tmp_path / "data", shape=(24, 24, 16), cases={"training": 1, "validation": 1, "test": 2})
    overlay = tmp_path / "small.yaml"
    overlay.write_text("spacing: [2.0, 2.0, 2.0]\npatch_size: [16, 16, 16]\n")
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "train.yaml"))
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path in paths:
        torch.save(parser.get_parsed_content("network_def", lazy=False).state_dict(), path)
    main(str([str(path) for path in paths]), str(BUNDLE / "configs"), str(overlay), str(data), cases=2, axes=(0,))
    lines = capsys.readouterr().out.splitlines()
    passes = {
        line[:28].strip(): int(line[28:35]) for line in lines if "network" in line[:14] and "interval" not in line
    }
    assert passes == {"one network": 1, "one network, axis 0": 2, "2 networks": 2, "2 networks, axis 0": 4}
    assert sum("inside the 90% interval" in line for line in lines) == 4
