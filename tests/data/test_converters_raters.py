"""Converters of data sets with several raters, on small trees and pickles made here."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.data.contract.faults import DataError
from common.data.converters.crops import read_pickle
from common.data.converters.isic import convert_isic
from common.data.converters.lidc import convert_lidc
from common.data.converters.qubiq import arrange, convert_qubiq
from common.data.converters.riga import convert_riga, fill_outlines
from tests.data.test_converters import listing, load, save
from tests.data.test_converters_challenges import fails, passes_check

SIZE = (24, 20)  # rows, columns


def rated(shape: tuple[int, ...], rater: int) -> np.ndarray:
    """A square that grows with the rater's number."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[6 : 10 + rater, 4:9] = 1
    return mask


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# QUBIQ


def qubiq(root: Path, raters: tuple[int, ...] = (3, 3, 2), trailing: bool = False) -> Path:
    """Slices, with or without further axes of 1, two tasks, and one case of the validation part."""
    affine = np.diag([2.0, 3.0, 1.0, 1.0])
    for number, count in enumerate(raters, 1):
        part = "Validation" if number == 3 else "Training"
        case = root / part / f"case{number:02d}"
        extra = (1, 1) if trailing else ()
        save(case / "image.nii.gz", noise((*SIZE, *extra), number), affine)
        for rater in range(1, count + 1):
            mask = rated((*SIZE, *extra), rater).astype(np.float32)
            save(case / f"task01_seg{rater:02d}.nii.gz", mask, affine)
            save(case / f"task02_seg{rater:02d}.nii.gz", mask[::-1], affine)
    return root


@pytest.mark.parametrize("trailing", [False, True])
def test_qubiq(tmp_path: Path, trailing: bool) -> None:
    output = convert_qubiq(str(qubiq(tmp_path / "kidney", trailing=trailing)), str(tmp_path / "out"))
    content = listing(output)
    assert content["name"] == "QUBIQ kidney" and content["labels"] == {"0": "background", "1": "task 1"}
    assert [record["group"] for record in content["training"]] == ["case01", "case02"]
    assert [len(record["labels"]) for record in [*content["training"], *content["validation"]]] == [3, 3, 2]
    for number, record in enumerate([*content["training"], *content["validation"]], 1):
        image, affine = load(output / record["image"])
        np.testing.assert_array_equal(image, noise(SIZE, number)[..., None])
        np.testing.assert_allclose(affine, np.diag([2.0, 3.0, 1.0, 1.0]))
        for rater, name in enumerate(record["labels"], 1):
            np.testing.assert_array_equal(load(output / name)[0], rated(SIZE, rater)[..., None])
    passes_check(output)


def test_qubiq_another_task(tmp_path: Path) -> None:
    root = qubiq(tmp_path / "prostate")
    content = listing(convert_qubiq(str(root), str(tmp_path / "out"), 2, "central gland"))
    assert content["labels"]["1"] == "central gland"
    mask = load(tmp_path / "out" / content["training"][0]["labels"][1])[0]
    np.testing.assert_array_equal(mask[..., 0], rated(SIZE, 2)[::-1])
    fails(convert_qubiq, root, "3 is in no case. Fix: use 1, 2", task=3)
    for task in ("two", -1, 1.5, True):
        fails(convert_qubiq, root, f"--task: is {task!r}. Fix: use a whole number of 0 or more", task=task)


@pytest.mark.parametrize("first", [True, False])
def test_qubiq_channels_and_visits(tmp_path: Path, first: bool) -> None:
    """Channels in the first or last axis become files; visits of one patient are one group."""
    root = tmp_path / "tumour"
    for case in ("case1-1", "case1-2", "case2-1"):
        image = noise((4, *SIZE), int(case[-1]) + 10 * int(case[4]))
        save(root / case / "image.nii.gz", image if first else np.moveaxis(image, 0, -1)[:, :, None])
        for rater in (1, 2):
            save(root / case / f"task01_seg{rater:02d}.nii.gz", rated(SIZE, rater))
    output = convert_qubiq(str(root), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["case1", "case1", "case2"]
    for seed, record in zip((11, 12, 21), content["training"], strict=True):
        for channel, name in enumerate(record["image"]):
            np.testing.assert_array_equal(load(output / name)[0][..., 0], noise((4, *SIZE), seed)[channel])
    assert len(content["channel_names"]) == 4
    passes_check(output)


def test_qubiq_volumes(tmp_path: Path) -> None:
    root, shape = tmp_path / "pancreas", (24, 20, 8)
    affine = np.diag([-1.0, 1.5, 4.0, 1.0])
    for number in (1, 2, 3):
        save(root / f"case{number}-1" / "image.nii.gz", noise(shape, number), affine)
        for rater in (1, 2):
            save(root / f"case{number}-1" / f"task01_seg0{rater}.nii.gz", rated(shape, rater), affine)
    output = convert_qubiq(str(root), str(tmp_path / "out"))
    record = listing(output)["training"][1]
    image, stored = load(output / record["image"])
    np.testing.assert_array_equal(image, noise(shape, 2))
    np.testing.assert_allclose(stored, affine)


def test_arrange_keeps_positions() -> None:
    """A slice stored along any axis: each voxel stays where it is in space."""
    affine = np.array([[0, 2.0, 0, 5], [-3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    for axis in range(3):
        stored = np.expand_dims(noise(SIZE, axis), axis)
        volume, turned = arrange(stored, affine)
        assert volume.shape == (1, *SIZE, 1)
        np.testing.assert_array_equal(volume[0, ..., 0], noise(SIZE, axis))
        place = [3, 2]
        place.insert(axis, 0)
        np.testing.assert_allclose(turned @ [3, 2, 0, 1], affine @ [*place, 1])


def test_qubiq_refuses(tmp_path: Path) -> None:
    root = qubiq(tmp_path / "kidney")
    mask = root / "Training/case01/task01_seg02.nii.gz"
    save(mask, rated(SIZE, 1) * 3)
    fails(convert_qubiq, root, r"task01_seg02.nii.gz: is no mask, it holds the values \[0, 3\]")
    save(mask, rated((24, 21), 1), np.diag([2.0, 3.0, 1.0, 1.0]))
    fails(convert_qubiq, root, "task01_seg02.nii.gz: has shape 24 x 21 x 1")
    for path in (root / "Training/case02").glob("task01*"):
        path.unlink()
    save(mask, rated(SIZE, 1), np.diag([2.0, 3.0, 1.0, 1.0]))
    fails(convert_qubiq, root, "no label for case02")
    assert len(listing(convert_qubiq(str(root), str(tmp_path / "out"), unlabelled=True))["training"]) == 2
    qubiq(root / "another")
    fails(convert_qubiq, root, "give the folder of one data set alone")


# LIDC and ISIC pickles


def crops(path: Path, colour: bool = False, floats: bool = False, protocol: int = 4) -> dict[str, Any]:
    """Two patients, of whom the first has two slices; the last rater saw nothing."""
    content = {}
    for number, series in enumerate(("0001_slice3", "0001_slice4", "0002_slice9")):
        image = noise((*SIZE, 3) if colour else SIZE, number)
        masks = [rated(SIZE, rater) for rater in (1, 2, 3)] + [np.zeros(SIZE, dtype=np.uint8)]
        entry = {"series_uid": series, "image": image / 255 if floats else image, "masks": masks}
        content[f"nodule {number}"] = {**entry, "alpha": masks[0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return content


@pytest.mark.parametrize("floats", [False, True])
def test_lidc(tmp_path: Path, floats: bool) -> None:
    crops(tmp_path / "in" / "lidc.pkl", floats=floats)
    output = convert_lidc(str(tmp_path / "in" / "lidc.pkl"), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["0001", "0001", "0002"]
    for number, record in enumerate(content["training"]):
        image, affine = load(output / record["image"])
        expected = noise(SIZE, number)[..., None] / (255 if floats else 1)
        np.testing.assert_allclose(image, expected, atol=1e-6)
        assert image.shape == (*SIZE, 1)
        np.testing.assert_array_equal(affine, np.eye(4))
        assert len(record["labels"]) == 4
        np.testing.assert_array_equal(load(output / record["labels"][2])[0][..., 0], rated(SIZE, 3))
        assert not load(output / record["labels"][3])[0].any()
    validated = convert_lidc(str(tmp_path / "in"), str(tmp_path / "again"), write_list(tmp_path))
    assert [record["group"] for record in listing(validated)["test"]] == ["0002"]
    passes_check(output)


def write_list(folder: Path) -> str:
    (folder / "test.txt").write_text("nodule_2\n")
    return str(folder / "test.txt")


@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", "bool"])
def test_lidc_types_that_nifti_lacks(tmp_path: Path, dtype: str) -> None:
    content = crops(tmp_path / "lidc.pkl")
    typed = {
        name: {**entry, "image": (entry["image"] // 128).astype(dtype), "masks": [entry["masks"][0].astype(dtype)]}
        for name, entry in content.items()
    }
    (tmp_path / "lidc.pkl").write_bytes(pickle.dumps(typed, protocol=4))
    output = convert_lidc(str(tmp_path / "lidc.pkl"), str(tmp_path / "out"))
    record = listing(output)["training"][0]
    np.testing.assert_array_equal(load(output / record["image"])[0][..., 0], noise(SIZE, 0) // 128)
    np.testing.assert_array_equal(load(output / record["labels"][0])[0][..., 0], rated(SIZE, 1))


def test_pickles_of_both_generations_of_numpy(tmp_path: Path) -> None:
    """NumPy 1 and NumPy 2 name the module of arrays differently; both are read, by either."""
    content = crops(tmp_path / "a.pkl")
    raw = (tmp_path / "a.pkl").read_bytes()
    for old, new in ((b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray"),):
        other = raw.replace(old, new) if old in raw else raw.replace(new, old)
        assert other != raw
        # protocol 4 frames carry their length: without them the stream is the same
        (tmp_path / "b.pkl").write_bytes(unframed(other, len(other) - len(raw)))
        read = read_pickle(tmp_path / "b.pkl")
        assert list(read) == list(content)
        np.testing.assert_array_equal(read["nodule 1"]["image"], content["nodule 1"]["image"])


def unframed(data: bytes, grown: int) -> bytes:
    """The pickle with the length of its first frame corrected."""
    assert data[2:3] == b"\x95"
    length = int.from_bytes(data[3:11], "little") + grown
    return data[:3] + length.to_bytes(8, "little") + data[11:]


class Hostile:
    """A pickle that makes a folder when it is loaded as usual."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "executed"
    (tmp_path / "in").mkdir()
    hostile = tmp_path / "in" / "lidc.pkl"
    entry = {"series_uid": "1_1", "image": noise(SIZE, 0), "masks": [rated(SIZE, 1)], "extra": Hostile(proof)}
    hostile.write_bytes(pickle.dumps({"a": entry}, protocol=protocol))
    for convert in (convert_lidc, convert_isic):
        fails(convert, tmp_path / "in", r"lidc.pkl: is refused: it is no pickle of plain arrays")
    assert not proof.exists()
    pickle.loads(hostile.read_bytes())  # the proof that it would have run
    assert proof.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    ],
)
def test_other_names_are_refused(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(payload)
    with pytest.raises(DataError, match="a.pkl: is refused"):
        read_pickle(tmp_path / "a.pkl")


def test_lidc_refuses(tmp_path: Path) -> None:
    path = tmp_path / "in" / "lidc.pkl"
    content = crops(path)
    for name, changes, message in (
        ("image", {"image": noise((*SIZE, 3), 0)}, r"nodule 1 has an image of shape \(24, 20, 3\)"),
        ("no image", {"image": None}, "nodule 1 has no image"),
        ("masks", {"masks": []}, "nodule 1 lacks masks"),
        ("series", {"series_uid": 3}, "nodule 1 lacks masks or series_uid"),
        ("values", {"masks": [rated(SIZE, 1) * 2]}, r"holds the values \[0, 2\]"),
        ("objects", {"image": np.full(SIZE, None)}, "stores object where numbers"),
        ("size", {"masks": [rated((24, 24), 1)]}, "has shape 24 x 24 x 1"),
        ("axes", {"masks": [rated((*SIZE, 1), 1)]}, "no array of 2 axes"),
    ):
        path.write_bytes(pickle.dumps({**content, "nodule 1": {**content["nodule 1"], **changes}}, protocol=4))
        fails(convert_lidc, path.parent, message)
        assert name
    path.write_bytes(pickle.dumps(content, protocol=4)[:500])
    fails(convert_lidc, path.parent, "lidc.pkl: (is refused|cannot be read as a pickle)")
    path.write_bytes(pickle.dumps([1, 2]))
    fails(convert_lidc, path.parent, "is no mapping of names to entries")
    crops(tmp_path / "in" / "another.pickle")
    fails(convert_lidc, path.parent, "holds 2 pickles")
    (tmp_path / "empty").mkdir()
    fails(convert_lidc, tmp_path / "empty", "is no .pkl or .pickle file")


# ISIC


def isic(root: Path) -> Path:
    """Two or three annotators a photograph, and superpixels beside them."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for number, count in enumerate((2, 3, 2)):
        name = f"ISIC_{number:07d}"
        Image.fromarray(noise((*SIZE, 3), number)).save(root / "images" / f"{name}.png")
        Image.fromarray(noise((*SIZE, 3), 9)).save(root / "images" / f"{name}_superpixels.png")
        for rater in range(1, count + 1):
            Image.fromarray(rated(SIZE, rater) * 255).save(root / "masks" / f"{name}_A0{rater}.png")
        (root / "masks" / f"._{name}_A01.png").write_bytes(b"macOS")
    return root


@pytest.mark.parametrize("apart", [False, True])
def test_isic(tmp_path: Path, apart: bool) -> None:
    root = isic(tmp_path / "in")
    if apart:
        output = convert_isic(str(root / "images"), str(tmp_path / "out"), masks=str(root / "masks"))
    else:
        output = convert_isic(str(root), str(tmp_path / "out"))
    content = listing(output)
    assert list(content["channel_names"].values()) == ["red", "green", "blue"]
    assert [len(record["labels"]) for record in content["training"]] == [2, 3, 2]
    for number, record in enumerate(content["training"]):
        for channel, name in enumerate(record["image"]):
            np.testing.assert_array_equal(load(output / name)[0][..., 0], noise((*SIZE, 3), number)[..., channel])
        for rater, name in enumerate(record["labels"], 1):
            np.testing.assert_array_equal(load(output / name)[0][..., 0], rated(SIZE, rater))
    passes_check(output)


def test_isic_pickle(tmp_path: Path) -> None:
    crops(tmp_path / "in" / "isic_attributes.pkl", colour=True)
    output = convert_isic(str(tmp_path / "in"), str(tmp_path / "out"))
    record = listing(output)["training"][1]
    assert record["group"] == "0001_slice4" and len(record["image"]) == 3
    np.testing.assert_array_equal(load(output / record["image"][2])[0][..., 0], noise((*SIZE, 3), 1)[..., 2])
    passes_check(output)


def test_isic_refuses(tmp_path: Path) -> None:
    root = isic(tmp_path / "in")
    mask = root / "masks" / "ISIC_0000001_A01.png"
    Image.fromarray(rated(SIZE, 1) * 100).save(mask)
    fails(convert_isic, root, r"ISIC_0000001_A01.png: is no mask, it holds the values \[0, 100\]")
    Image.fromarray(rated((20, 24), 1)).save(mask)
    fails(convert_isic, root, "ISIC_0000001_A01.png: has shape 20 x 24 x 1")
    mask.write_bytes(b"no picture")
    fails(convert_isic, root, "ISIC_0000001_A01.png: cannot be read as a picture")
    for path in (root / "masks").glob("ISIC_0000001*"):
        path.unlink()
    fails(convert_isic, root, "no label for ISIC_0000001")
    (root / "images" / "ISIC_0000002.png").unlink()
    fails(convert_isic, root, "no image for ISIC_0000002")


# RIGA

FUNDUS = (160, 170)


def circle(centre: tuple[float, float], radius: float) -> np.ndarray:
    """Distance from a circle's line, negative inside."""
    rows, columns = np.indices(FUNDUS)
    return np.asarray(np.hypot(rows - centre[0], columns - centre[1]) - radius)


def riga(root: Path, touching: bool = False, ending: str = "png") -> dict[str, np.ndarray]:
    """Three photographs of two folders, each outlined six times; returns the true labels by the marked file's name."""
    truth = {}
    for part in ("BinRushed/BinRushed1", "BinRushed/BinRushed2", "Magrabia/MagrabiaMale"):
        folder = root / part
        folder.mkdir(parents=True)
        photograph = fundus(part)
        Image.fromarray(photograph).save(folder / f"image1prime.{ending}", quality=90)
        for rater in range(1, 7):
            disc = circle((80, 85), 50 + rater)
            cup = circle((105, 85), 25 + rater) if touching else circle((86, 80), 20 + rater)
            marked = photograph.copy()
            marked[(np.abs(disc) < 1.5) | (np.abs(cup) < 1.5)] = 0
            Image.fromarray(marked).save(folder / f"image1-{rater}.{ending}", quality=90)
            truth[f"{part.replace('/', '_')}_image1_rater{rater}"] = np.where(cup < 0, 2, np.where(disc < 0, 1, 0))
    return truth


def fundus(name: str) -> np.ndarray:
    """A bright disc on a red ground, with some noise."""
    glow = np.clip(1 - circle((80, 85), 40) / 60, 0, 1)[..., None] * [60, 90, 60] + [120, 60, 40]
    return np.asarray(
        np.clip(glow + np.random.default_rng(len(name)).normal(0, 3, (*FUNDUS, 3)), 0, 255), dtype=np.uint8
    )


@pytest.mark.parametrize(("touching", "ending"), [(False, "png"), (True, "png"), (False, "jpg"), (True, "jpg")])
def test_riga(tmp_path: Path, touching: bool, ending: str) -> None:
    truth = riga(tmp_path / "in", touching, ending)
    output = convert_riga(str(tmp_path / "in"), str(tmp_path / "out"))
    content = listing(output)
    assert content["labels"] == {"0": "background", "1": "optic disc", "2": "optic cup"}
    assert content["training"][0]["group"] == "BinRushed_BinRushed1_image1"
    image = Image.open(tmp_path / "in" / "BinRushed" / "BinRushed1" / f"image1prime.{ending}")
    for channel, name in enumerate(content["training"][0]["image"]):
        np.testing.assert_array_equal(load(output / name)[0][..., 0], np.asarray(image)[..., channel])
    for record in content["training"]:
        assert len(record["labels"]) == 6 and len(record["image"]) == 3
        for name in record["labels"]:
            label = load(output / name)[0][..., 0]
            true = truth[Path(name).name.removesuffix(".nii.gz")]
            for value in (1, 2):
                dice = 2 * np.sum((label == value) & (true == value)) / (np.sum(label == value) + np.sum(true == value))
                assert dice > 0.95
    passes_check(output)


def test_riga_leaves_out_what_it_cannot_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    riga(tmp_path / "in")
    folder = tmp_path / "in" / "BinRushed" / "BinRushed1"
    Image.open(folder / "image1prime.png").save(folder / "image1-4.png")  # nothing drawn
    output = convert_riga(str(tmp_path / "in"), str(tmp_path / "out"))
    assert [len(record["labels"]) for record in listing(output)["training"]] == [5, 6, 6]
    assert "image1-4.png: shows no outline" in caplog.text
    for rater in range(1, 7):
        Image.open(folder / "image1prime.png").save(folder / f"image1-{rater}.png")
    fails(convert_riga, tmp_path / "in", "image1prime.png: outlines can be read in not one marking")
    Image.fromarray(noise((20, 20, 3), 0)).save(folder / "image1-2.png")
    fails(convert_riga, tmp_path / "in", "image1-2.png: has .20, 20. rows and columns")
    (folder / "image1-3.png").unlink()
    fails(convert_riga, tmp_path / "in", "no -3 for BinRushed/BinRushed1/image1")


def test_riga_names_as_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A capital letter in one of a photograph's names is no other photograph; markings without one are left out."""
    riga(tmp_path / "in")
    folder = tmp_path / "in" / "Magrabia" / "MagrabiaMale"
    (folder / "image1-1.png").rename(folder / "Image1-1.png")
    for name in ("image48-1.png", "image48-1.tif", "image48-2.png"):
        Image.open(folder / "image1-2.png").save(folder / name)
    content = listing(convert_riga(str(tmp_path / "in"), str(tmp_path / "out")))
    assert [record["group"] for record in content["training"]] == [
        "BinRushed_BinRushed1_image1",
        "BinRushed_BinRushed2_image1",
        "Magrabia_MagrabiaMale_Image1",
    ]
    assert [len(record["labels"]) for record in content["training"]] == [6, 6, 6]
    assert "(prime) is missing: Magrabia/MagrabiaMale/image48" in caplog.text
    Image.open(folder / "image1-2.png").save(folder / "IMAGE1-2.tif")
    fails(convert_riga, tmp_path / "in", "image1-2.png: a second -2 of Magrabia/MagrabiaMale/IMAGE1, beside .*IMAGE1-2")
    for path in (tmp_path / "in").rglob("*prime.png"):
        path.unlink()
    fails(convert_riga, tmp_path / "in", "no prime for BinRushed/BinRushed1/image1, BinRushed/BinRushed2/image1")


@pytest.mark.parametrize("outlines", [1, 3])
def test_outlines_that_are_not_two_are_refused(tmp_path: Path, outlines: int) -> None:
    strokes = np.zeros(FUNDUS, dtype=bool)
    for number in range(outlines):
        strokes |= np.abs(circle((80, 85), 20 + 20 * number)) < 1.5
    with pytest.raises(DataError, match=f"encloses {outlines} regions"):
        fill_outlines(strokes, tmp_path / "image1-1.png")


def test_a_gap_of_two_pixels_is_closed(tmp_path: Path) -> None:
    strokes = (np.abs(circle((80, 85), 60)) < 1.5) | (np.abs(circle((80, 85), 25)) < 1.5)
    whole = fill_outlines(strokes, tmp_path / "a.png")
    strokes[:, 84:86] &= np.arange(FUNDUS[0])[:, None] > 80
    np.testing.assert_array_equal(fill_outlines(strokes, tmp_path / "a.png") > 0, whole > 0)
