"""The table of settings, and its check at the front door of every bundle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import root_cause
from common.settings import COMMON, VOLUMES, SettingsError, SettingsTable, switch
from common.settings.__main__ import table_of
from common.settings.setting import BadValueError
from common.settings.table import DECAY
from tests.bundles.conftest import BUNDLES, ROOT, Bundle

TABLE = SettingsTable(COMMON, VOLUMES, (DECAY,))


@pytest.mark.parametrize(("given", "meant"), [(True, True), ("true", True), ("False", False), ("false", False)])
def test_words_for_yes_and_no(given: bool | str, meant: bool) -> None:
    assert switch(given, "refine") is meant


@pytest.mark.parametrize("given", ["no", "", 1, None])
def test_other_words_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="refine must be true or false, got"):
        switch(given, "refine")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("patch_size", [0, 16, 16], r"patch_size: holds 0, .*Fix: give 3 whole numbers"),
        ("patch_size", [20, 20, 20], r"patch_size: holds 20, .*a multiple of 16"),
        ("patch_size", "big", r"patch_size: is 'big', which is no list"),
        ("patch_size", [16, 16], r"patch_size: has 2 items.*Fix: give 3"),
        ("spacing", [-1, 1, 1], r"spacing: holds -1, which is not above 0. .*\(mm\)"),
        ("spacing", [1, 1], r"spacing: has 2 items"),
        ("overlap", 1.0, r"overlap: is 1.0, which is not in \[0, 1\)"),
        ("epoch_length", 0, r"epoch_length: is 0, which is not at least 1"),
        ("epoch_length", 2.5, r"epoch_length: is 2.5, which is no whole number"),
        ("max_epochs", 1.5, r"max_epochs: is 1.5, which is no whole number"),
        ("cache_rate", 5, r"cache_rate: is 5, which is not in \[0, 1\]"),
        ("decay_interval", -1, r"decay_interval: is -1, which is not above 0"),
        ("max_skipped_steps", "few", r"max_skipped_steps: is 'few', which is no number"),
        ("learning_rate", "fast", r"learning_rate: is 'fast', which is no number"),
        ("learning_rate", "1e-3", r"learning_rate: is '1e-3', which is text here"),
        ("learning_rate", True, r"learning_rate: is True, which is no number"),
        ("learning_rate", {"a": 1}, r"learning_rate: is \{'a': 1\}, which is no number"),
        ("learning_rate", float("nan"), r"learning_rate: is nan, which is no finite number"),
        ("weight_decay", float("inf"), r"weight_decay: is inf, which is no finite number"),
        ("learning_rate", None, r"learning_rate: is null"),
        ("learning_rate", "null", r"learning_rate: is null. Fix: give a number above 0"),
        ("ckpt_dir", "None", r"ckpt_dir: is null. Fix: give a path"),
        ("precision", "none", r"precision: is null"),
        ("precision", "half", r"precision: is 'half'. Fix: give auto, float32, bfloat16 or float16"),
        ("resume", "yes", r"resume: is 'yes'. Fix: give true or false"),
        ("ckpt_dir", True, r"ckpt_dir: is True, which is no path"),
        ("device", "gpu", r"device: is 'gpu', which is no device"),
        ("device", "cuda:99", r"device: is 'cuda:99', and CUDA devices that torch finds here: .*Fix: give cpu"),
    ],
)
def test_a_bad_value_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(BadValueError, match=message):
        TABLE[name].check(value)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("patch_size", (32, 16, 48), [32, 16, 48]),
        ("overlap", 0.5, 0.5),
        ("overlap", [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]),
        ("dataset_dir", 2024, "2024"),
        ("dataset_dir", None, None),
        ("ckpt_dir", Path("a"), "a"),
        ("resume", "true", True),
        ("epoch_length", 2.0, 2),
        ("max_gradient_norm", None, None),
        ("max_gradient_norm", "null", None),
        ("dataset_dir", "NULL", None),
        ("dataset_dir", "None", None),
        ("dataset_dir", "./null", "./null"),
    ],
)
def test_a_good_value_gets_its_type(name: str, value: Any, meant: Any) -> None:
    checked = TABLE[name].check(value)
    assert checked == meant and type(checked) is type(meant)


@pytest.mark.parametrize(("count", "device", "fix"), [(0, "cuda", "cpu"), (2, "cuda:2", "cpu or cuda:0 or cuda:1")])
def test_a_device_that_is_not_there_is_refused(
    count: int, device: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    message = f"device: is '{device}', and CUDA devices that torch finds here: {count}. Fix: give {fix}."
    for given in (device, torch.device(device)):
        with pytest.raises(BadValueError) as caught:
            TABLE["device"].check(given)
        assert str(caught.value) == message
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert TABLE["device"].check(device) == device


@pytest.mark.parametrize("name", BUNDLES)
def test_docs_hold_the_table(name: str) -> None:
    text = (ROOT / "bundles" / name / "docs" / "README.md").read_text()
    found = re.search("<!-- settings -->\n(.*?)<!-- /settings -->", text, re.DOTALL)
    assert found is not None and found[1] == table_of(name).markdown()


def test_the_command_prints_the_table_or_the_bundles() -> None:
    words = [sys.executable, "-m", "common.settings"]
    done = subprocess.run([*words, BUNDLES[0]], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == table_of(BUNDLES[0]).markdown()
    done = subprocess.run([*words, "nobody"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("no bundle named 'nobody' here. Fix: use one of ")


@pytest.mark.parametrize("name", BUNDLES)
def test_every_scalar_of_the_configs_is_in_the_table(name: str, tmp_path: Path) -> None:
    bundle, table = Bundle(name, tmp_path), table_of(name)
    for path in sorted(bundle.configs.glob("*.yaml")):
        values = {key: value for key, value in bundle.load(path.stem).items() if not re.match(r".*#|\+", key)}
        blocks = {
            key for key, value in values.items() if isinstance(value, dict) or re.search(r"_target_|\$", str(value))
        }
        # a setting may be an expression
        plain = (values.keys() - blocks) | {key for key in values if isinstance(values[key], str)}
        assert plain - {"network", "volume_size"} <= set(table.settings), path


CASES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rat": 0.1}, r"learning_rat: there is no such setting. Fix: did you mean learning_rate"),
    ({"learning_rate": "fast"}, r"learning_rate: is 'fast'"),
    ({"epoch_length": 0}, r"epoch_length: is 0"),
    ({"max_epochs": 1.5}, r"max_epochs: is 1.5"),
    ({"max_epochs": "$3 / 2"}, r"max_epochs: is 1.5"),
    ({"max_epochs": "$nothing"}, r"max_epochs: '\$nothing' cannot be evaluated \(name 'nothing'"),
    ({"seed": "few"}, r"seed: is 'few'"),
    ({"num_workers": {"a": 1}}, r"num_workers: is \{'a': 1\}"),
    ({"train#trainer#max_epoch": 1}, r"train#trainer#max_epoch: there is no 'max_epoch'.*did you mean max_epochs"),
    ({"validate#inferrer": 1}, r"validate#inferrer: there is no .*did you mean inferer"),
    ({"clean_per_batch": 0, "noisy_per_batch": 0}, r"both are 0"),
    ({"clean_per_batch": 1.5}, r"clean_per_batch: is 1.5"),
    ({"alpha": -3, "passes": 2.5}, r"(?s)2 faults in the settings.*passes: is 2.5.*alpha: is -3"),
    ({"patch_size": [20, 20, 20]}, r"patch_size: holds 20"),
    ({"attentive_weight": 0.1, "attention_level": "$None"}, r"attention_level: is null"),
    ({"threshold": 2}, r"threshold: is 2"),
    ({"max_epochs": None}, r"max_epochs: is null"),
    ({"output_dir": "null"}, r"output_dir: is null"),
    ({"learning_rat": None}, r"learning_rat: there is no such setting"),
    ({"flip_prob": 2}, r"flip_prob: is 2"),
    ({"kernels": [2, 3, 3, 3]}, r"kernels: holds 2, .*Fix: give odd numbers"),
    ({"strides": [2, 2, 2, 1]}, r"strides: begins with 2, .*Fix: begin with 1"),
    ({"mamba_levels": [7]}, r"mamba_levels: holds 7, .*the levels 0 to 2"),
    ({"clean_per_batch": 1, "noisy_per_batch": 0}, r"patch_size, clean_per_batch, noisy_per_batch: a single patch"),
    ({"labelled_per_batch": 1, "unlabelled_per_batch": 0}, r"labelled_per_batch, unlabelled_per_batch: a batch is"),
]


@pytest.mark.parametrize("name", BUNDLES)
def test_a_run_is_refused_before_anything_is_touched(name: str, tmp_path: Path) -> None:
    bundle = Bundle(name, tmp_path)
    for place in ("models/model.pt", "models/last.ckpt", "eval/history.csv"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("of an earlier run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused = 0
    for overrides, message in CASES:
        keys = {key for key in overrides if "#" not in key and key != "learning_rat"}
        if keys <= set(bundle.train):
            with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - MONAI wraps it
                bundle.run("training", "train", **bundle.tiny("train") | overrides)
            cause = root_cause(caught.value)
            assert isinstance(cause, SettingsError) and re.search(message, str(cause)), (overrides, cause)
            refused += 1
    assert refused >= 10
    for run_id, files in {"evaluating": ("train", "evaluate"), "inferring": ("inference",)}.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011, B017
            bundle.run(run_id, *files, **bundle.tiny(*files), num_classe=3)
        assert "did you mean num_classes" in str(root_cause(caught.value))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"results_dir": "run/eval"}, "output_dir"),
        ({"results_dir": "run/models/../models"}, "ckpt_dir"),
        ({"results_dir": "run"}, "output_dir, ckpt_dir"),
        ({"results_dir": "data", "dataset_dir": "data/all"}, "dataset_dir"),
        ({"results_dir": "other", "weights": ["a.pt", "other/b.pt"]}, "weights"),
        ({"results_dir": "run/eval/test", "dataset_dir": None, "weights": "run/models/model.pt"}, ""),
        ({"results_dir": "run/ev"}, ""),
        ({}, ""),
    ],
)
def test_results_lie_in_a_folder_of_their_own(given: dict[str, Any], held: str) -> None:
    values = {"output_dir": "run/eval", "ckpt_dir": os.path.abspath("run/models"), **given}
    faults = [fault for check in TABLE.checks for fault in check(values)]
    assert [fault.where for fault in faults] == ["results_dir"] * bool(held)
    assert not held or f", which holds {held}: " in faults[0].what


@pytest.mark.parametrize("name", BUNDLES)
def test_an_evaluation_does_not_move_its_run_away(name: str, tmp_path: Path) -> None:
    bundle, files = Bundle(name, tmp_path), ("train", "evaluate")
    for place in ("models/model.pt", "eval/history.csv", "eval/metrics.csv"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("of an earlier run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for run_id in ("evaluating", "run"):
        with pytest.raises(Exception) as caught:  # noqa: PT011, B017 - MONAI wraps it
            bundle.run(run_id, *files, **bundle.tiny(*files), results_dir=str(tmp_path / "eval"))
        cause = root_cause(caught.value)
        assert isinstance(cause, SettingsError) and "results_dir: is" in str(cause) and "output_dir" in str(cause)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_null_is_given_as_a_word_at_the_command_line(tmp_path: Path) -> None:
    """Real processes, because the command line gives None of the one word and text of the other."""
    show = tmp_path / "show.yaml"
    show.write_text("training: [$@settings, \"$print('got', @max_gradient_norm, @data._arguments['datalist'])\"]\n")
    words = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    words += [f"['bundles/affinity_umamba/configs/train.yaml','{show}']"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for typed, last in {
        ("--max_gradient_norm", "None", "--datalist", "null"): "got None None",
        ("--max_gradient_norm=null", "--datalist=None"): "got None None",
        ("--max_gradient_norm", "5", "--datalist", "null.json"): "got 5 null.json",
        ("--seed", "None"): "seed: is null. Fix: give a whole number at least 0.",
        ("--output_dir", "None"): "output_dir: is null. Fix: give a path.",
        ("--learning_rat", "None"): "learning_rat: there is no such setting. Fix: did you mean learning_rate.",
    }.items():
        done = subprocess.run([*words, *typed], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert last in done.stdout.splitlines() + done.stderr.splitlines(), (typed, done.stderr)


def test_paths_of_digits_and_short_errors_at_the_command_line(tmp_path: Path) -> None:
    """Real processes: exit code, length of stderr, a path of digits as it was typed."""
    words = [sys.executable, "-m", "monai.bundle", "run", "training"]
    words += ["--config_file", f"bundles/{BUNDLES[0]}/configs/train.yaml", "--ckpt_dir", str(tmp_path / "models")]
    words += ["--output_dir", str(tmp_path / "eval")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for typed, last in {
        ("--learning_rat", "0.1"): "learning_rat: there is no such setting. Fix: did you mean learning_rate.",
        ("--dataset_dir", "2_024"): "2_024: there is no such folder",
    }.items():
        done = subprocess.run([*words, *typed], cwd=ROOT, env=environment, capture_output=True, text=True)
        errors = [line for line in done.stderr.splitlines() if "Warning" not in line and not line.startswith("  work")]
        assert done.returncode == 1 and len(errors) == 1 and last in errors[0], done.stderr
    assert list(tmp_path.iterdir()) == []
