"""Study files: what they say, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.data.contract.faults import DataError
from common.evaluation.study.recipe import DEFAULT_METRICS, read_study

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted(ROOT.glob("bundles/*/studies/*.yaml"))
MINIMAL = {"bundle": "alc", "rows": {"one": {}, "two": {"overlays": ["mean_teacher"], "settings": {"alpha": 1.0}}}}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_the_collections_own_studies_are_read(path: Path) -> None:
    assert list(read_study(path).runs())


def test_rows_add_to_what_all_have(tmp_path: Path) -> None:
    path = written(tmp_path, overlays=["la_quarter"], settings={"alpha": 3.0, "beta": 2.0}, seeds=[3, 5])
    study = read_study(path)
    one, two = study.rows
    configs = Path("bundles/alc/configs")
    assert one.files("evaluate") == [configs / f"{name}.yaml" for name in ("train", "la_quarter", "evaluate")]
    assert two.files() == [configs / f"{name}.yaml" for name in ("train", "la_quarter", "mean_teacher")]
    assert two.settings == {"alpha": 1.0, "beta": 2.0}
    assert study.reference == "one"
    runs = [(run.seed, run.row.name, run.name) for run in study.runs()]
    assert runs == [(3, "one", "seed_3"), (3, "two", "seed_3"), (5, "one", "seed_5"), (5, "two", "seed_5")]
    assert [run.row.name for run in study.runs(("two",), (5,))] == ["two"]


def test_an_overlay_may_be_a_file_of_the_users(tmp_path: Path) -> None:
    path = written(tmp_path, overlays=["plan.yaml"])
    with pytest.raises(DataError, match=r"has no plan\.yaml"):
        read_study(path)
    (tmp_path / "plan.yaml").write_text("num_classes: 3\n")
    one, two = read_study(path).rows
    assert one.overlays == (tmp_path / "plan.yaml",)
    assert two.overlays == (tmp_path / "plan.yaml", Path("bundles/alc/configs/mean_teacher.yaml"))


def test_folds_are_runs_of_their_own(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, folds=2, datalist="dataset_fold{fold}.json"))
    assert [run.name for run in study.runs(("one",))] == ["seed_0_fold_0", "seed_0_fold_1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row": {}}, "unknown key 'row'. Fix: write rows"),
        ({"rows": {}}, "names no row"),
        ({"rows": {"one": {"overlay": ["x"]}}}, "unknown key 'overlay'. Fix: write overlays"),
        ({"rows": {"one": {"overlays": ["nothing"]}}}, "has no nothing.yaml"),
        ({"bundle": "alk"}, "no bundle 'alk'"),
        ({"seeds": "many"}, "seeds: is 'many'"),
        ({"folds": 1}, "folds: is 1"),
        ({"reference": "three"}, "'three' is no row. Fix: name one of one, two"),
        ({"data": ["split {source} --seed {sed}"]}, "places ['sed'] that nothing fills"),
        ({"datalist": "dataset_fold{fold}.json"}, "places ['fold'] that nothing fills"),
        ({"measure": {"sections": "test"}}, "unknown key 'sections'. Fix: write section"),
        ({"measure": {"calibrate": "yes"}}, "calibrate is 'yes'. Fix: write true or false"),
        ({"measure": {"calibrate": True, "section": "validation"}}, "which is measured. Fix: measure the test section"),
    ],
)
def test_faults_name_the_place_and_the_fix(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_study(written(tmp_path, **changes))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overlays": "clean_only"}, "overlays: is 'clean_only'. Fix: write a list of names"),
        ({"overlays": [["clean_only"]]}, "overlays: is [['clean_only']]"),
        ({"metrics": "dice"}, "metrics: is 'dice'. Fix: write a list of names"),
        ({"data": "split {source} --seed {seed}"}, "data: is 'split {source} --seed {seed}'. Fix: write a list"),
        ({"data": [{"split": "{source}"}]}, "data: is [{'split': '{source}'}]"),
        ({"datalist": 5}, "datalist: is 5"),
        ({"settings": [1]}, "settings: is [1]. Fix: write a mapping"),
        ({"measure": "test"}, "measure: is 'test'. Fix: write a mapping"),
        ({"measure": {"settings": 1}}, "measure, settings: is 1"),
        ({"measure": {"section": ["test"]}}, "measure, section: is ['test']"),
        ({"measure": {"weights": 1}}, "measure, weights: is 1"),
        ({"rows": {"one": {"overlays": "clean_only"}}}, "row one, overlays: is 'clean_only'"),
        ({"rows": {"one": {"data": "split"}}}, "row one, data: is 'split'"),
        ({"rows": {"one": {"settings": [1]}}}, "row one, settings: is [1]"),
        ({"rows": {"one": {"values": [1]}}}, "row one, values: is [1]"),
    ],
)
def test_one_fault_for_an_entry_of_another_kind(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    """Above all: a text is no list of its letters."""
    with pytest.raises(DataError) as raised:
        read_study(written(tmp_path, **changes))
    assert len(raised.value.faults) == 1 and words in str(raised.value)


def test_a_row_may_do_without_the_data_of_all(tmp_path: Path) -> None:
    rows = {"one": {"data": []}, "two": {"data": None}, "three": {"data": ["split {source}"]}, "four": {}}
    study = read_study(written(tmp_path, data=["split {source} --seed {seed}"], rows=rows, metrics=None))
    expected = {"one": (), "two": (), "three": ("split {source}",), "four": ("split {source} --seed {seed}",)}
    assert {row.name: row.data for row in study.rows} == expected
    assert study.metrics == DEFAULT_METRICS


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_study(written(tmp_path, seeds="many", folds=1, reference="three"))
    assert len(raised.value.faults) == 3


def test_metrics_that_are_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"bundle": "alc", "rows": {"a": {}}, "metrics": ["ged", "dice_sofd"]}))
    with pytest.raises(DataError, match="names 'dice_sofd', which is not measured.*write dice_soft"):
        read_study(path)
