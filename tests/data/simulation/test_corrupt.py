"""Corrupted copies of a data set: what they hold, that they can be remade, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import pytest

from common.data.contract.dataset import read_data
from common.data.contract.faults import DataError
from common.data.simulation.corrupt import corrupt, join_pairs, replay
from common.data.simulation.noise import apply_noise
from common.data.simulation.scribbles import apply_scribbles

AFFINE = np.array([[-0.6, 0, 0, 5], [0, 0.7, 0, -6], [0, 0, 1.5, 7], [0, 0, 0, 1.0]])


def save(path: Path, volume: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, AFFINE), path)


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def listing(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text()))


def change(folder: Path, **changes: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps({**listing(folder), **changes}))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ten training and two validation cases with two structures, one record noisy and one unlabelled beforehand."""
    root = tmp_path / "original"
    rng = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for number in range(12):
        label = np.zeros((20, 18, 12), dtype=np.uint8)
        start = rng.integers(4, 7, size=3)
        label[tuple(slice(s, s + 5) for s in start)] = 1
        label[start[0] + 5 : start[0] + 9, start[1] : start[1] + 5, start[2] : start[2] + 4] = 2
        save(root / f"images/c{number}.nii.gz", rng.integers(0, 99, label.shape).astype(np.int16))
        save(root / f"labels/c{number}.nii.gz", label)
        record = {"image": f"./images/c{number}.nii.gz", "label": f"./labels/c{number}.nii.gz", "group": f"p{number}"}
        sections["training" if number < 10 else "validation"].append(record)
    sections["training"][8]["label_quality"] = "noisy"
    del sections["training"][9]["label"]
    content = {"name": "tiny", "labels": {"0": "background", "1": "a", "2": "b"}, **sections}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_what_is_written(dataset: Path, tmp_path: Path) -> None:
    output = corrupt(str(dataset), str(tmp_path / "noisy"), fraction=0.75, radius=(1, 3), seed=3)
    written = listing(output)
    recipe = written["corruption"]
    assert {key: recipe[key] for key in ("kind", "seed", "fraction", "radius")} == {
        "kind": "noise",
        "seed": 3,
        "fraction": 0.75,
        "radius": [1.0, 3.0],
    }
    assert len(recipe["cases"]) == 6  # of the 8 that were clean
    for before, after in zip(listing(dataset)["training"], written["training"], strict=True):
        assert after["group"] == before["group"]
        np.testing.assert_array_equal(load(output / after["image"]), load(dataset / before["image"]))
        if after["image"] not in recipe["cases"]:
            assert "reference" not in after
            continue
        assert after["label_quality"] == "noisy"
        true = load(dataset / before["label"])
        np.testing.assert_array_equal(load(output / after["reference"]), true)
        noisy = nib.load(output / after["label"])
        np.testing.assert_array_equal(noisy.affine, nib.load(dataset / before["image"]).affine)  # type: ignore[attr-defined]
        assert noisy.get_data_dtype() == np.uint8  # type: ignore[attr-defined]
        parameters = recipe["cases"][after["image"]]
        assert [item["structure"] for item in parameters] == [1, 2]
        expected = apply_noise(true, parameters)
        np.testing.assert_array_equal(load(output / after["label"]), expected)
        assert (expected != true).any()
    clean = [r for r in written["training"] if r.get("label_quality") == "clean"]
    assert len(clean) == 2 and all("noisy/" not in r["label"] for r in clean)


def test_labels_taken_away(dataset: Path, tmp_path: Path) -> None:
    output = corrupt(str(dataset), str(tmp_path / "few"), kind="unlabelled", fraction=0.75, seed=3)
    before, after = listing(dataset), listing(output)
    recipe = after["corruption"]
    noisy = listing(corrupt(str(dataset), str(tmp_path / "noisy"), fraction=0.75, seed=3))
    assert recipe["kind"] == "unlabelled" and all(parameters == [] for parameters in recipe["cases"].values())
    assert len(recipe["cases"]) == len(noisy["corruption"]["cases"]) == 6
    for old, new in zip(before["training"], after["training"], strict=True):
        if new["image"] in recipe["cases"]:
            assert set(new) == {"image", "group", "reference"}
            np.testing.assert_array_equal(load(output / new["reference"]), load(dataset / old["label"]))
        else:
            assert ("label" in new) == ("label" in old)
    assert listing(replay(str(dataset), str(output / "dataset.json"), str(tmp_path / "again"))) == after
    with_raters = [
        {"image": record["image"], "labels": [record["label"]] * 2, "scribble": record["label"]}
        for record in listing(dataset)["training"][:3]
    ]
    change(dataset, training=with_raters, validation=[])
    left = listing(corrupt(str(dataset), str(tmp_path / "raters"), kind="unlabelled", fraction=0.6))["training"]
    assert sum("labels" in record for record in left) == 1
    assert sum(record.keys() == {"image"} for record in left) == 2

    with pytest.raises(DataError, match="--radius: is no setting of --kind unlabelled. Fix: leave it out; it has none"):
        corrupt(str(dataset), str(tmp_path / "other"), kind="unlabelled", radius=3)


def test_scribbles_take_the_place_of_labels(dataset: Path, tmp_path: Path) -> None:
    output = corrupt(str(dataset), str(tmp_path / "drawn"), kind="scribble", slice_axis=1, keep=0.7, seed=5)
    before, after = listing(dataset), listing(output)
    recipe = after["corruption"]
    assert after["scribble_unlabelled_value"] == 255
    assert {key: value for key, value in recipe.items() if key != "cases"} == {
        "kind": "scribble",
        "seed": 5,
        "fraction": 1.0,
        "dims": 2,
        "slice_axis": 1,
        "margin": 5.0,
        "keep": 0.7,
        "width": 1,
    }
    assert list(recipe["cases"]) == [record["image"] for record in after["training"][:8]]  # all that were clean
    for old, new in zip(before["training"][:8], after["training"][:8], strict=True):
        assert set(new) == {"image", "group", "scribble", "reference"}
        true = load(dataset / old["label"])
        np.testing.assert_array_equal(load(output / new["reference"]), true)
        drawn = nib.load(output / new["scribble"])
        assert drawn.get_data_dtype() == np.uint8  # type: ignore[attr-defined]
        np.testing.assert_array_equal(drawn.affine, nib.load(dataset / old["image"]).affine)  # type: ignore[attr-defined]
        expected = apply_scribbles(true, recipe["cases"][new["image"]], slice_axis=1)
        np.testing.assert_array_equal(np.asarray(drawn.dataobj), expected)  # type: ignore[attr-defined]
        assert set(np.unique(expected)) == {0, 1, 2, 255}
    for old, new in zip(before["validation"], after["validation"], strict=True):
        assert set(old) == set(new)
        np.testing.assert_array_equal(load(output / new["label"]), load(dataset / old["label"]))
    assert after["training"][8]["label_quality"] == "noisy" and "scribble" not in after["training"][8]
    assert read_data(output)[1] == []


@pytest.mark.parametrize("settings", [{"keep": 0.5, "margin": 2, "width": 2, "fraction": 0.5}, {"dims": 3}])
def test_scribbles_are_seeded_and_replayed(dataset: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    def make(name: str, seed: int) -> Path:
        return corrupt(str(dataset), str(tmp_path / name), kind="scribble", seed=seed, **settings)

    first, again, other = make("a", 1), make("b", 1), make("c", 2)
    remade = replay(str(dataset), str(first / "dataset.json"), str(tmp_path / "d"))
    assert listing(first) == listing(again) == listing(remade)
    assert listing(first)["corruption"]["cases"] != listing(other)["corruption"]["cases"]
    assert len(listing(first)["corruption"]["cases"]) == round(8 * settings.get("fraction", 1))
    files = sorted(first.rglob("*.nii.gz"))
    assert any(path.parts[-3] == "simulated_scribbles" for path in files)
    for path in files:
        for copy in (again, remade):
            np.testing.assert_array_equal(load(path), load(copy / path.relative_to(first)))


def test_scribbles_of_an_oblique_volume(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([0.7, 0.7, 6.0])
    affine[:3, 3] = [3, -4, 5]
    label = np.zeros((12, 11, 3), dtype=np.uint8)
    label[3:8, 4:9, 1] = 1
    for name, volume in (("image", label.astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    content = {"labels": ["background", "a"], "training": [{"image": "image.nii.gz", "label": "label.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    output = corrupt(str(tmp_path), str(tmp_path / "drawn"), kind="scribble")
    drawn: Any = nib.load(output / "simulated_scribbles/label.nii.gz")
    np.testing.assert_allclose(drawn.affine, affine, atol=1e-6)
    assert set(np.unique(np.asarray(drawn.dataobj)[..., 1])) == {0, 1, 255}
    assert (np.asarray(drawn.dataobj)[..., ::2] == 255).all()


def test_scribbles_that_are_there_already(dataset: Path, tmp_path: Path) -> None:
    """The data set's value for unlabelled voxels holds for the simulated scribbles too, which replace the others."""
    records = listing(dataset)["training"]
    label = load(dataset / records[0]["label"])
    save(dataset / "drawn/c0.nii.gz", np.where(label > 0, label, 4).astype(np.uint8))
    change(dataset, training=[{**records[0], "scribble": "drawn/c0.nii.gz"}, records[1]], scribble_unlabelled_value=4)
    output = corrupt(str(dataset), str(tmp_path / "drawn"), kind="scribble")
    after = listing(output)
    assert after["scribble_unlabelled_value"] == 4 and not (output / "drawn").exists()
    for record in after["training"]:
        assert record["scribble"].startswith("simulated_scribbles/")
        assert set(np.unique(load(output / record["scribble"]))) == {0, 1, 2, 4}


def test_refused_scribbles(dataset: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "drawn")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"radius": 3}, "--radius: is no setting of --kind scribble"),
        ({"slice_axis": 3}, "--slice_axis: 3 does not go with --dims 2"),
        ({"slice_axis": 0, "dims": 3}, "--slice_axis: 0 does not go with --dims 3"),
        ({"dims": 4}, "--dims 4"),
        ({"fraction": 1.5}, "--fraction: 1.5 .* at most 1"),
        ({"keep": 0}, "--keep: 0 is out of range"),
        ({"margin": -1}, "--margin: -1 is out of range"),
        ({"width": 0}, "--width: 0 is out of range"),
    ]
    for settings, message in refused:
        with pytest.raises(DataError, match=message):
            corrupt(str(dataset), target, kind="scribble", **settings)
    save(dataset / "labels/c3.nii.gz", np.zeros((20, 18, 12), dtype=np.uint8))
    with pytest.raises(DataError, match=r"c3\.nii\.gz: the label holds no structure to scribble on\. Fix: "):
        corrupt(str(dataset), target, kind="scribble")
    records = listing(dataset)["training"]
    change(dataset, training=records[8:])
    with pytest.raises(DataError, match="0 records with a clean label, 1 is needed"):
        corrupt(str(dataset), target, kind="scribble")
    assert not Path(target).exists()


def test_raters_take_the_place_of_labels(dataset: Path, tmp_path: Path) -> None:
    change(dataset, test=[{"image": "images/held.nii.gz", "label": "labels/held.nii.gz"}])
    for folder in ("images", "labels"):
        shutil.copy(next((dataset / folder).glob("*.nii.gz")), dataset / folder / "held.nii.gz")
    settings: dict[str, Any] = {"raters": 3, "shift": 1.0, "fraction": 0.25, "others": "unlabelled"}
    made = corrupt(str(dataset), str(tmp_path / "a"), kind="raters", **settings)
    content = listing(made)
    rated = [record for record in content["training"] if "labels" in record]
    assert len(rated) == 2 and all(len(record["labels"]) == 3 and "label" not in record for record in rated)
    others = [r for r in content["training"] if "labels" not in r and r.get("label_quality") != "noisy"]
    assert not any("label" in r for r in others) and sum("reference" in r for r in others) == 6
    (held,) = content["test"]
    assert len(held["labels"]) == 3 and held["label"] == "labels/held.nii.gz", "a case to measure with keeps both"
    masks = [load(made / path) for path in rated[0]["labels"]]
    assert not np.array_equal(masks[0], masks[1])
    again = replay(str(dataset), str(made / "dataset.json"), str(tmp_path / "b"))
    for path in rated[0]["labels"] + held["labels"]:
        assert np.array_equal(load(made / path), load(again / path))


def test_unreliable_borders(dataset: Path, tmp_path: Path) -> None:
    made = corrupt(str(dataset), str(tmp_path / "a"), kind="boundary", shift=1.5)
    records = [record for record in listing(made)["training"] if "reference" in record]
    assert len(records) == 8 and all(record["label_quality"] == "noisy" for record in records)
    assert any(not np.array_equal(load(made / r["label"]), load(made / r["reference"])) for r in records)


def test_other_records_and_sections_stay(dataset: Path, tmp_path: Path) -> None:
    output = corrupt(str(dataset), str(tmp_path / "noisy"), radius=2)
    before, after = listing(dataset), listing(output)
    assert after["name"] == "tiny" and after["labels"] == before["labels"]
    for old, new in zip(before["validation"], after["validation"], strict=True):
        assert set(old) == set(new)
        np.testing.assert_array_equal(load(output / new["label"]), load(dataset / old["label"]))
    assert after["training"][8]["label_quality"] == "noisy" and "reference" not in after["training"][8]
    assert "label" not in after["training"][9] and "label_quality" not in after["training"][9]
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())  # no temporary folder is left


def test_labels_are_no_links_to_the_original(dataset: Path, tmp_path: Path) -> None:
    output = corrupt(str(dataset), str(tmp_path / "noisy"))
    (output / "labels/c0.nii.gz").write_bytes(b"edited")
    assert load(dataset / "labels/c0.nii.gz").shape == (20, 18, 12)


def test_seed_decides_and_replay_is_exact(dataset: Path, tmp_path: Path) -> None:
    first = corrupt(str(dataset), str(tmp_path / "a"), fraction=0.5, radius=(1, 3), seed=1)
    again = corrupt(str(dataset), str(tmp_path / "b"), fraction=0.5, radius=(1, 3), seed=1)
    other = corrupt(str(dataset), str(tmp_path / "c"), fraction=0.5, radius=(1, 3), seed=2)
    remade = replay(str(dataset), str(first / "dataset.json"), str(tmp_path / "d"))
    assert listing(first) == listing(again) == listing(remade)
    assert listing(first)["corruption"]["cases"] != listing(other)["corruption"]["cases"]
    for path in sorted(first.rglob("*.nii.gz")):
        for copy in (again, remade):
            np.testing.assert_array_equal(load(path), load(copy / path.relative_to(first)))


@pytest.mark.parametrize("fraction, noisy", [(0.001, 1), (0.5, 4), (0.999, 7)])
def test_at_least_one_clean_and_one_noisy(dataset: Path, tmp_path: Path, fraction: float, noisy: int) -> None:
    output = corrupt(str(dataset), str(tmp_path / "noisy"), fraction=fraction, radius=1)
    assert len(listing(output)["corruption"]["cases"]) == noisy


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "rot"}, "--kind noise or --kind scribble"),
        ({"slice_axis": 2}, "--slice_axis: is no setting of --kind noise"),
        ({"fraction": 0}, "--fraction"),
        ({"fraction": 1.0}, "--fraction"),
        ({"radius": (15, 3)}, "--radius"),
        ({"radius": (1, 2, 3)}, "--radius"),
        ({"datalist": "other.json"}, "no such data list"),
    ],
)
def test_refused_arguments(dataset: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupt(str(dataset), str(tmp_path / "noisy"), **arguments)
    assert not (tmp_path / "noisy").exists()


def test_refused_data_sets(dataset: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "noisy")
    records = listing(dataset)["training"]
    wrong = {
        "2 are needed": {"training": records[:1]},
        "share one label": {"training": [{**records[0], "image": r["image"]} for r in records[:8]]},
        "lies outside": {"training": [{"image": "../x.nii.gz"}]},
        "corrupted already": {"corruption": {}},
        "has no image": {"training": [{"label": "x"}]},
        "is missing": {"validation": [{"image": "images/none.nii.gz"}]},
    }
    content = listing(dataset)
    for message, changes in wrong.items():
        change(dataset, **changes)
        with pytest.raises(DataError, match=message):
            corrupt(str(dataset), target)
        (dataset / "dataset.json").write_text(json.dumps(content))
    (dataset / "labels/c0.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"c0\.nii\.gz: cannot be read"):
        corrupt(str(dataset), target, fraction=0.999)
    save(dataset / "labels/c0.nii.gz", np.full((20, 18, 12), 0.5))
    with pytest.raises(DataError, match="whole numbers"):
        corrupt(str(dataset), target, fraction=0.999, seed=0)
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        corrupt(str(dataset), target)


@pytest.mark.parametrize(
    ("key", "value"), [("label", None), ("image", None), ("label", ""), ("image", [3]), ("labels", []), ("scribble", 2)]
)
def test_paths_that_are_none_are_refused_as_check_does(dataset: Path, tmp_path: Path, key: str, value: Any) -> None:
    records = listing(dataset)["training"]
    change(dataset, training=[records[0], {**records[1], key: value}, *records[2:]])
    _, faults = read_data(dataset)
    with pytest.raises(DataError, match=rf"training\[1\]/{key}: is .* where a ") as caught:
        corrupt(str(dataset), str(tmp_path / "noisy"))
    assert caught.value.faults[0] in faults


def test_nothing_is_overwritten(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy/mine.txt").write_text("kept")
    with pytest.raises(DataError, match=r"noisy: the output is there already.*Fix: remove it, or"):
        corrupt(str(dataset), str(tmp_path / "noisy"))
    assert [path.name for path in (tmp_path / "noisy").iterdir()] == ["mine.txt"]


def test_replay_refuses_recipes_of_other_data(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no corruption"):
        replay(str(dataset), str(dataset / "dataset.json"), str(tmp_path / "d"))
    first = corrupt(str(dataset), str(tmp_path / "a"), fraction=0.999)
    change(dataset, training=listing(dataset)["training"][2:])
    with pytest.raises(DataError, match="which the recipe names"):
        replay(str(dataset), str(first / "dataset.json"), str(tmp_path / "d"))


def test_the_command_line_as_typed(dataset: Path, tmp_path: Path) -> None:
    typed = f"corrupt {dataset} --kind noise --fraction 0.9 --radius 3 15 --output {tmp_path / 'noisy'}".split()
    fire.Fire({"corrupt": corrupt}, command=join_pairs(typed))
    recipe = listing(tmp_path / "noisy")["corruption"]
    assert recipe["radius"] == [3.0, 15.0] and len(recipe["cases"]) == 7


def test_join_pairs() -> None:
    assert join_pairs(["--radius", "3", "15"]) == ["--radius=3,15"]
    assert join_pairs(["a", "--radius", "2.5", "4", "b"]) == ["a", "--radius=2.5,4", "b"]
    for alone in (["--radius", "3"], ["--radius", "3", "--seed", "1"], ["--radius=3,15"], ["--seed", "1", "2"]):
        assert join_pairs(alone) == alone
