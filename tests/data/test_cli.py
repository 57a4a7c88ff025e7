"""The commands of ``python -m common.data``."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data import make_phantom, open_data
from common.data.__main__ import main
from common.data.converters import CONVERTERS
from common.data.converters.base import Converter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    cases = {"training": 6, "validation": 1, "test": 1}
    return make_phantom(tmp_path / "phantom", "noisy", cases=cases, shape=(20, 20, 14))


def bundle(root: Path, name: str, needs: str) -> None:
    (root / name / "configs").mkdir(parents=True)
    records = f"{{_target_: $@data.training_records, needs: {needs}}}"
    text = f"data: {{_target_: common.data.LazyData}}\ntrain: {{dataset: {{data: {records}}}}}\n"
    (root / name / "configs" / "train.yaml").write_text(text)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with status 1; returns what it printed."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return printed.out + printed.err


def test_check_prints_the_table_and_which_bundles_fit(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle(tmp_path / "bundles", "one", "[clean, noisy, validation]")
    bundle(tmp_path / "bundles", "two", "[scribble]")
    main(["check", str(phantom), "--bundles", str(tmp_path / "bundles")])
    printed = capsys.readouterr().out
    assert "4 clean, 2 noisy" in printed and "20 x 20 x 14" in printed and "1 x 1 x 1.5" in printed
    assert "case_000" in printed and "3 cap" in printed
    assert "Bundle one: fits" in printed
    assert "Bundle two: does not fit: needs training records with a `scribble`" in printed
    assert "No faults found in 8 cases." in printed


def test_check_table_gives_volumes_in_ml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """500 voxels of 2 x 1 x 1 mm are 1 ml."""
    label = np.zeros((20, 20, 10), dtype=np.uint8)
    label[:10, :10, :5] = 1
    image = np.random.default_rng(0).random(label.shape).astype(np.float32)
    for name, voxels in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    content = {"labels": ["background", "organ"], "test": [{"image": "image.nii.gz", "label": "label.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    main(["check", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert next(line for line in printed if line.startswith("1 organ")).split()[-3:] == ["1", "1", "1"]
    assert next(line for line in printed if line.startswith("test     image")).split()[-2:] == ["1", "-"]


def test_check_lists_every_fault_and_ends_with_status_1(phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (phantom / "labels" / "case_001.nii.gz").unlink()
    printed = fails(capsys, "check", str(phantom), "--num_classes", "2")
    assert "2 faults:" in printed and "1 fault\n" in printed
    assert "labels/case_001.nii.gz (training/label): there is no such file. Fix: " in printed
    assert "use --num_classes 2" not in printed and "use --num_classes 4" in printed


def test_errors_are_one_message_without_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such folder" in fails(capsys, "check", str(tmp_path / "nowhere"))
    assert "unknown kind 'sparse'" in fails(capsys, "phantom", str(tmp_path / "new"), "--kind", "sparse")
    assert "unknown kind 'dicomrt'" in fails(capsys, "convert", "dicomrt", str(tmp_path), str(tmp_path / "new"))


def test_a_place_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in fails(capsys, "phantom", str(tmp_path / "file" / "phantom"))


def write_groups(root: Path, groups: dict[str, int], noisy: tuple[str, ...] = ()) -> None:
    """A JSON of records by group; split does not open the files."""
    training = [
        {
            "image": f"{group}_{number}.nii.gz",
            "label": f"{group}_{number}_label.nii.gz",
            "group": group,
            **({"label_quality": "noisy"} if group in noisy else {}),
        }
        for group, count in groups.items()
        for number in range(count)
    ]
    content = {"labels": {"0": "background", "1": "organ"}, "training": training, "name": "tiny"}
    (root / "dataset.json").write_text(json.dumps(content))


def test_split_keeps_groups_whole_and_validates_on_clean_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_groups(tmp_path, dict.fromkeys("abcdefghij", 3), noisy=("a", "b"))
    before = (tmp_path / "dataset.json").read_bytes()
    main(["split", str(tmp_path), "--fraction", "0.25", "--seed", "1"])
    content = json.loads((tmp_path / "dataset_split.json").read_text())
    drawn, kept = ({record["group"] for record in content[name]} for name in ("validation", "training"))
    assert len(drawn) == 2 and len(kept) == 8 and not drawn & kept and not drawn & {"a", "b"}
    assert len(content["validation"]) == 6 and content["split"]["seed"] == 1
    assert content["name"] == "tiny" and content["validation"][0]["image"].endswith("_0.nii.gz")  # paths stay relative
    assert (tmp_path / "dataset.json").read_bytes() == before
    assert "24 training and 6 validation" in capsys.readouterr().out


def test_split_draws_a_test_section_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4:1:1, and the validation section is the one that is drawn without it."""
    write_groups(tmp_path, dict.fromkeys("abcdefghijklmn", 2), noisy=("a", "b"))
    shares = ["--fraction", "0.1667", "--seed", "1"]
    main(["split", str(tmp_path), *shares, "--output", "two.json"])
    main(["split", str(tmp_path), *shares, "--test_fraction", "0.1667"])
    assert "20 training and 4 validation records, 4 to test on" in capsys.readouterr().out
    content = json.loads((tmp_path / "dataset_split.json").read_text())
    groups = {name: {record["group"] for record in content[name]} for name in ("training", "validation", "test")}
    assert [len(found) for found in groups.values()] == [10, 2, 2]
    assert len(set.union(*groups.values())) == 14 and {"a", "b"} <= groups["training"]
    assert content["validation"] == json.loads((tmp_path / "two.json").read_text())["validation"]
    assert content["split"] == {"seed": 1, "fraction": 0.1667, "test_fraction": 0.1667, "source": "dataset.json"}


def test_split_is_seeded(tmp_path: Path) -> None:
    write_groups(tmp_path, dict.fromkeys("abcdefghijklmnop", 1))
    drawn = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        main(["split", str(tmp_path), "--seed", str(seed), "--output", f"{name}.json"])
        drawn.append(json.loads((tmp_path / f"{name}.json").read_text())["validation"])
    assert drawn[0] == drawn[1] != drawn[2]


def test_folds_validate_on_every_clean_group_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(tmp_path, dict.fromkeys("abcdefgh", 2), noisy=("c",))
    main(["split", str(tmp_path), "--folds", "3", "--seed", "2"])
    assert capsys.readouterr().out.count("Use it with --datalist dataset_fold") == 3
    validated: list[str] = []
    for fold in range(3):
        content = json.loads((tmp_path / f"dataset_fold{fold}.json").read_text())
        drawn, kept = ({record["group"] for record in content[name]} for name in ("validation", "training"))
        assert not drawn & kept and drawn | kept == set("abcdefgh") and 2 <= len(drawn) <= 3
        assert content["split"] == {"seed": 2, "folds": 3, "fold": fold, "source": "dataset.json"}
        validated += drawn
    assert sorted(validated) == list("abdefgh")
    main(["split", str(tmp_path), "--folds", "3", "--seed", "3", "--output", "other{fold}.json"])
    other = json.loads((tmp_path / "other0.json").read_text())["validation"]
    assert other != json.loads((tmp_path / "dataset_fold0.json").read_text())["validation"]


def test_folds_may_stand_in_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(tmp_path, dict.fromkeys("abcd", 2))
    content = json.loads((tmp_path / "dataset.json").read_text())

    def give(folds: dict[str, Any]) -> None:
        for record in content["training"]:
            record.update(fold=folds[record["group"]]) if record["group"] in folds else record.pop("fold", None)
        (tmp_path / "dataset.json").write_text(json.dumps(content))

    give({"a": 1, "b": 0, "c": 1})  # d always trains
    main(["split", str(tmp_path), "--folds", "2"])
    for fold, expected in enumerate(("b", "ac")):
        written = json.loads((tmp_path / f"dataset_fold{fold}.json").read_text())
        assert {record["group"] for record in written["validation"]} == set(expected)
        assert {record["group"] for record in written["training"]} == set("abcd") - set(expected)
    again = ("split", str(tmp_path), "--folds", "2", "--output", "x{fold}.json")
    give({"a": 0, "b": 0, "c": 0})
    assert "no group with clean labels throughout is in fold 1" in fails(capsys, *again)
    give({"a": 2, "b": [1]})
    message = fails(capsys, *again)
    assert "group a: names fold 2" in message and "group b: names fold '[1]'" in message
    give({})
    content["training"][0]["fold"] = 1
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert "group a: its records name several folds: 1, None" in fails(capsys, *again)
    assert not list(tmp_path.glob("x*.json"))


def test_split_refuses(tmp_path: Path, phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(tmp_path, {"a": 1, "b": 1})
    main(["split", str(tmp_path)])
    assert "is there already" in fails(capsys, "split", str(tmp_path))
    assert "number above 0 and below 1" in fails(capsys, "split", str(tmp_path), "--fraction", "1.5")
    assert "does not go with --folds" in fails(capsys, "split", str(tmp_path), "--folds", "2", "--fraction", "0.5")
    tested = ("split", str(tmp_path), "--test_fraction")
    assert "--test_fraction: does not go with --folds" in fails(capsys, *tested, "0.5", "--folds", "2")
    assert "sum is below 1" in fails(capsys, *tested, "0.9")
    assert "--test_fraction: is 2" in fails(capsys, *tested, "2")
    assert "2 group(s) have clean labels throughout, 3 are needed" in fails(
        capsys, *tested, "0.2", "--output", "t.json"
    )
    assert "whole number of 2 or more" in fails(capsys, "split", str(tmp_path), "--folds", "1")
    assert "no place for the number" in fails(capsys, "split", str(tmp_path), "--folds", "2", "--output", "a.json")
    assert "2 group(s) have clean labels throughout, 3 are needed" in fails(
        capsys, "split", str(tmp_path), "--folds", "3"
    )
    assert "paths in it are relative" in fails(capsys, "split", str(tmp_path), "--output", "/elsewhere/a.json")
    assert "has a `validation` section already" in fails(capsys, "split", str(phantom))
    assert "has a `test` section already" in fails(capsys, "split", str(phantom), "--test_fraction", "0.2")
    write_groups(tmp_path, {"a": 2, "b": 1}, noisy=("b",))
    assert "1 group(s) have clean labels" in fails(capsys, "split", str(tmp_path), "--output", "other.json")


def test_corrupt_takes_its_options_as_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_phantom(tmp_path / "dense", "dense", cases={"training": 4, "validation": 1}, shape=(20, 20, 14))
    main(f"corrupt {source} --kind noise --fraction 0.5 --radius 1 2 --seed 3 --output {tmp_path / 'noisy'}".split())
    assert str(tmp_path / "noisy") in capsys.readouterr().out
    data = open_data(tmp_path / "noisy", needs=["clean", "noisy", "validation"])
    assert sum(record["label_quality"] == "noisy" for record in data.training) == 2


def test_corrupt_takes_labels_away(tmp_path: Path) -> None:
    source = make_phantom(tmp_path / "dense", "dense", cases={"training": 4, "validation": 1}, shape=(20, 20, 14))
    main(f"corrupt {source} --kind unlabelled --fraction 0.5 --seed 3 --output {tmp_path / 'few'}".split())
    data = open_data(tmp_path / "few", needs=["label", "unlabelled", "validation"])
    assert sum("label" in record for record in data.training) == 2
    assert all("reference" in record for record in data.training if "label" not in record)


def test_corrupt_draws_scribbles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_phantom(tmp_path / "dense", "dense", cases={"training": 2, "validation": 1}, shape=(20, 20, 14))
    main(f"corrupt {source} --kind scribble --slice_axis 2 --seed 1 --output {tmp_path / 'drawn'}".split())
    assert str(tmp_path / "drawn") in capsys.readouterr().out
    data = open_data(tmp_path / "drawn", needs=["scribble", "validation"], num_classes=4)
    assert all("scribble" in record and "label" not in record for record in data.training)
    main(["check", str(tmp_path / "drawn"), "--bundles", str(tmp_path)])
    assert "No faults found in 7 cases." in capsys.readouterr().out
    whole = f"corrupt {source} --kind scribble --dims 3 --slice_axis 2 --output {tmp_path / 'other'}"
    assert "--slice_axis: 2 does not go with --dims 3" in fails(capsys, *whole.split())


def write_task(source: Path) -> Path:
    """A task of the decathlon with one labelled image, and one whose label was kept back."""
    for folder, name, dtype in (
        ("imagesTr", "tiny_1", np.float32),
        ("labelsTr", "tiny_1", np.uint8),
        ("imagesTs", "tiny_2", np.float32),
    ):
        (source / folder).mkdir(parents=True)
        voxels = (np.random.default_rng(0).random((6, 5, 4)) > 0.5).astype(dtype)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / folder / f"{name}.nii.gz")
    training = [{"image": "./imagesTr/tiny_1.nii.gz", "label": "./labelsTr/tiny_1.nii.gz"}]
    content = {"name": "Tiny", "labels": {"0": "background", "1": "organ"}, "modality": {"0": "CT"}}
    listed = {"training": training, "test": ["./imagesTs/tiny_2.nii.gz"]}
    (source / "dataset.json").write_text(json.dumps({**content, **listed}))
    return source


def test_convert_names_the_folder_and_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_task(tmp_path / "Task99_Tiny")
    main(["convert", "decathlon", str(source), str(tmp_path / "left atrium")])
    assert f"Next: python -m common.data check '{tmp_path / 'left atrium'}'" in capsys.readouterr().out, (
        "as it is typed"
    )
    assert (tmp_path / "left atrium" / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ([], 1),
        (["--unlabelled"], 2),
        (["--nounlabelled"], 1),
        *[(["--unlabelled", word], 2) for word in ("true", "True", "YES", "1")],
        *[(["--unlabelled", word], 1) for word in ("false", "False", "No", "0")],
    ],
)
def test_a_switch_of_a_converter_means_what_it_says(typed: list[str], count: int, tmp_path: Path) -> None:
    source = write_task(tmp_path / "Task99_Tiny")
    main(["convert", "decathlon", str(source), str(tmp_path / "converted"), *typed])
    assert len(json.loads((tmp_path / "converted" / "dataset.json").read_text())["training"]) == count


@pytest.mark.parametrize("word", ["fales", "2", "None", "[]"])
def test_a_switch_that_is_neither_yes_nor_no(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "decathlon", str(write_task(tmp_path / "in")), str(tmp_path / "out"), "--unlabelled", word]
    assert f"--unlabelled: is {word!r}. Fix: give true or false." in fails(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_options_of_a_converter_come_in_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text as it was typed, whatever else Fire would make of it; numbers as numbers."""
    found: list[Any] = []

    def convert(source: str, output: str, margin: int | None = None, masks: str | None = None, way: str = "a") -> Path:
        found.extend([source, margin, masks, way])
        return Path(output)

    monkeypatch.setitem(CONVERTERS, "toy", Converter("toys", convert, ("margin", "masks", "way")))
    main(["convert", "toy", "2024_05_12", "1.10", "--margin", "25", "--masks", "1_0", "--way=x#y"])
    assert found == ["2024_05_12", 25, "1_0", "x#y"]


NAMES = ["2024_05_12", "out#2", "1.10", "1e3", "True", "[a]", "'a'", "(1,2)"]


@pytest.mark.parametrize(("name", "other"), list(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)))
def test_paths_stay_as_they_were_typed(name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_task(Path(name))
    main(["convert", "decathlon", name, other])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, other])
    write_groups(source, dict.fromkeys("abcd", 1))
    (source / "dataset.json").rename(source / name)
    main(["split", name, "--datalist", name, f"--output={other}.json"])
    assert (source / f"{other}.json").is_file()


def test_other_options_are_numbers_still(tmp_path: Path) -> None:
    write_groups(tmp_path, dict.fromkeys("abcd", 1))
    main(["split", str(tmp_path), "--seed", "1", "--fraction", "0.5"])
    made = json.loads((tmp_path / "dataset_split.json").read_text())["split"]
    assert (made["seed"], made["fraction"]) == (1, 0.5)


def test_what_a_converter_logs_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(source: str, output: str) -> Path:
        logging.getLogger("common.data.converters.toy").info("left out: %s", "b")
        logging.getLogger("common.data.contract").warning("odd")
        logging.getLogger("monai.toy").info("not asked for")
        return Path(output)

    root, ours = logging.getLogger(), logging.getLogger("common")
    before = (ours.level, ours.propagate, [*ours.handlers])
    monkeypatch.setattr(root, "handlers", [*root.handlers, logging.StreamHandler()])  # as an application has
    monkeypatch.setitem(CONVERTERS, "toy", Converter("toys", convert, ()))
    main(["convert", "toy", str(tmp_path), "out"])
    shown = capsys.readouterr()
    assert shown.err == "left out: b\nodd\n" and shown.out.strip().startswith("Converted data set in out.")
    assert (ours.level, ours.propagate, ours.handlers) == before


def test_cases_left_out_are_told_at_the_command_line(tmp_path: Path) -> None:
    """A real process: nothing but what is ours, each line once."""
    affine = "\n".join(["NDims = 3", "DimSize = 2 2 2", "ElementType = MET_UCHAR", "ElementSpacing = 1 1 1"])
    for folder, name in (("train", "Case00"), ("train", "Case00_segmentation"), ("test", "Case01")):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / folder / f"{name}.raw").write_bytes(bytes([0, 1] * 4))
        (tmp_path / "in" / folder / f"{name}.mhd").write_text(f"{affine}\nElementDataFile = {name}.raw\n")
    command = [sys.executable, "-m", "common.data", "convert", "promise12", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    told = [line for line in re.split(r"[\r\n]", done.stderr) if line.strip() and "converting" not in line]
    assert done.returncode == 0 and told == ["left out, as they have no labels: test_Case01"], done.stderr


def test_the_module_runs_as_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "common.data", "check", str(tmp_path / "nowhere")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("Fix: give the folder that holds the data set's JSON.")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("left", [["--fold", "5"], ["--sed", "3"], ["0.2", "1", "3", "a.json", "dataset.json", "7"]])
def test_what_is_left_over_is_refused_before_anything_is_written(left: list[str], tmp_path: Path) -> None:
    write_groups(tmp_path, dict.fromkeys("abcdefgh", 1))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(["split", str(tmp_path), *left])
    assert caught.value.code == 2 and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed: is -1. Fix: use a whole number of 0 or more"),
        (["--fraction", "20%"], "--fraction: is '20%'. Fix: use a number above 0 and below 1"),
    ],
)
def test_values_of_no_use_are_told(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_groups(tmp_path, dict.fromkeys("abcdefgh", 1))
    with pytest.raises(SystemExit):
        main(["split", str(tmp_path), *options])
    assert message in capsys.readouterr().err


def test_an_option_that_a_converter_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "nnunet", str(tmp_path), str(tmp_path / "out"), "--foo", "1"])
    assert "--foo: is no option of nnunet" in capsys.readouterr().err


def test_without_a_command_there_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert all(f"     {command}\n" in shown for command in ("check", "split", "phantom", "corrupt", "convert"))


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main([*words, "--help"])
    printed = capsys.readouterr()
    assert not printed.err
    return printed.out


@pytest.mark.parametrize("command", ["check", "plan", "split", "phantom", "corrupt", "convert"])
def test_help_is_whole_and_its_command_can_be_copied(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(capsys, command)
    assert f"\n    python -m common.data {command} " in shown and "'python" not in shown
    assert not re.search(r"\*\*|``|Optional\[", shown)
    assert "POSITIONAL ARGUMENTS" in shown and "FLAGS" in shown


def test_help_of_corrupt_tells_each_kind_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = help_of(capsys, "corrupt").split("--kind ")
    (noise,) = [part for part in kinds if part.startswith("noise:")]
    assert re.search(r"--fraction 0\.9 .*\n +--radius 3 15 +least and greatest radius of the ball in voxels", noise)
    (raters,) = [part for part in kinds if part.startswith("raters:")]
    assert all(f"--{option} " in raters for option in ("raters 4", "shift 2.0", "missed 0.1", "others keep"))
    assert "--radius" not in raters


def test_help_of_convert_tells_each_kind_and_of_one_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    every, one = help_of(capsys, "convert"), help_of(capsys, "convert", "pancreas")
    for name, entry in CONVERTERS.items():
        assert re.search(rf"^ +{name} +{re.escape(entry.words[:30])}", every, re.MULTILINE), name
    assert re.search(r"--label_axes auto +how labels lie on images", one) and "--margin " in one
    assert "promise12" not in one
