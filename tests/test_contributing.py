"""The examples of CONTRIBUTING.md do what the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser

from common.data import make_phantom
from common.data.converters import CONVERTERS
from common.evaluation import metrics
from common.evaluation.metrics import table

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
LONGEST = 300  # lines of configuration of a paper, neither blank nor comment
LONGER = {"ambissl": 370, "affinity_umamba": 325}  # sets and views; two decoders and their switches


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL)


def lines_of_configuration(folder: Path) -> int:
    files = [folder / f"{name}.yaml" for name in ("train", "evaluate", "inference")]
    return sum(bool(line.split("#")[0].strip()) for file in files for line in file.read_text().splitlines())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which ``toy`` is the only bundle, made as the page says."""
    root = tmp_path_factory.mktemp("repository")
    scripts, configs = root / "bundles/toy/scripts", root / "bundles/toy/configs"
    scripts.mkdir(parents=True)
    configs.mkdir()
    (scripts / "__init__.py").touch()
    method, settings = blocks("Add a paper", "python")
    (scripts / "method.py").write_text(method)
    (scripts / "settings.py").write_text(settings)
    (changes,) = blocks("Add a paper", "yaml")
    changed = yaml.safe_load(changes)
    for name in ("train", "evaluate", "inference"):
        text = (ROOT / "bundles/alc/configs" / f"{name}.yaml").read_text()
        if name == "train":  # the method's settings are replaced
            start, end = text.index("# method"), text.index("# optimisation")
            text = re.sub(r"(?m)^(clean|noisy)_per_batch: .*\n", "", text[:start] + text[end:])
        parser = ConfigParser(yaml.safe_load(text))
        for key, value in changed.items():
            if name == "train" or key == "bundle_root" and key in parser:
                parser[key] = value
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(parser.get(), sort_keys=False, width=120))
    (root / "common").symlink_to(ROOT / "common")
    make_phantom(root / "data", "dense", cases={"training": 4, "validation": 1, "test": 1}, shape=(24, 24, 16))
    return root


def run(root: Path, run_id: str, *configs: str, **settings: Any) -> None:
    files = [f"bundles/toy/configs/{name}.yaml" for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for key, value in {"dataset_dir": root / "data", "patch_size": "[16,16,16]", **settings}.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_paper_trains_evaluates_and_segments(toy: Path) -> None:
    run(toy, "training", "train", max_epochs=1, epoch_length=2)
    assert "loss/supervised" in (toy / "bundles/toy/eval/history.csv").read_text()
    run(toy, "evaluating", "train", "evaluate", overlap="0.0")
    assert (toy / "bundles/toy/eval/test/metrics.csv").is_file()
    run(toy, "inferring", "inference", overlap="0.0", dataset_dir=min((toy / "data/images").iterdir()))
    assert list((toy / "bundles/toy/eval/inference").rglob("*_pred.nii.gz"))
    said = subprocess.run(
        [sys.executable, "-m", "common.settings", "toy"], cwd=toy, capture_output=True, text=True, timeout=60
    )
    assert "`labels_per_batch`" in said.stdout, said.stderr


def test_a_papers_configuration_is_short(toy: Path) -> None:
    (changes,) = blocks("Add a paper", "yaml")
    assert len(changes.splitlines()) < 20
    for metadata in ROOT.glob("bundles/*/configs/metadata.json"):
        count = lines_of_configuration(metadata.parent)
        longest = LONGER.get(metadata.parents[1].name, LONGEST)
        assert count <= longest, f"{metadata.parents[1].name} has {count} lines"


def test_a_metric_is_a_function_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "METRICS", dict(table.METRICS))
    for module in [module for module in sys.modules.values() if getattr(module, "METRICS", None) is metrics.METRICS]:
        monkeypatch.setattr(module, "METRICS", table.METRICS)
    (code,) = blocks("Add a metric", "python")
    exec(code, {"MaskPair": metrics.MaskPair, "Metric": metrics.Metric, "METRICS": table.METRICS})
    reference = np.zeros((6, 6), int)
    reference[1:5, 1:5] = 1
    prediction = reference.copy()
    prediction[1] = 0
    cases = metrics.CaseTable({1: "square"})
    cases.add("a", prediction, reference, (1.0, 1.0))
    cases.write_csv(tmp_path / "metrics.csv")
    (row,) = [row for row in metrics.read_rows(tmp_path / "metrics.csv") if row["structure"] == "square"]
    assert float(row["volume_difference"]) == pytest.approx(4 / 16)
    assert "volume_difference" in cases.format_summary()


def test_a_converter_is_one_file(tmp_path: Path) -> None:
    (code,) = blocks("Add a converter", "python")
    (tmp_path / "in").mkdir()
    np.savetxt(tmp_path / "in" / "a.txt", [[0.1, 0.9], [0.6, 0.2]])
    try:
        exec(compile(code, "example", "exec"), {"__name__": "example"})
        CONVERTERS["brightness"].convert(str(tmp_path / "in"), str(tmp_path / "out"), threshold=0.7)
    finally:
        CONVERTERS.pop("brightness", None)
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert content["training"] == [{"image": "images/a.nii.gz", "group": "a", "label": "labels/a.nii.gz"}]
    label = nib.Nifti1Image.from_filename(tmp_path / "out" / "labels" / "a.nii.gz")
    assert np.asarray(label.dataobj)[..., 0].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("base", ["train", "inference"])
def test_a_data_set_is_an_overlay_of_what_is_there(base: str) -> None:
    (text,) = blocks("Add a data set", "yaml")
    overlay = yaml.safe_load(text)
    config = ConfigParser.load_config_file(ROOT / "bundles/alc/configs" / f"{base}.yaml")
    assert set(overlay) <= set(config)
    numbers = [line for line in text.splitlines() if re.search(r"^\w+: .*\d", line)]
    assert all(re.search(r"# .*\b(paper|family|ours)\b", line) for line in numbers)


def test_rooms_and_commands_are_there() -> None:
    for path in re.findall(r"`((?:common|bundles/alc|ci|tests)/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:common|ci)[\w.]+)", PAGE):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
