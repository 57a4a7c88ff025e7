"""Bad data: every fault gives its own clear message, with a fix, before anything is trained."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data import DataError, open_data

SHAPE = (6, 5, 4)
Content = dict[str, Any]
Break = Callable[[Path, Content], None]


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mask(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    voxels = np.zeros(shape, dtype=np.uint8)
    voxels[1:4, 1:4, 1:3] = 1
    return voxels


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Content]:
    """A sound data set: 2 training cases (one with every kind of label) and 1 validation case."""
    for number in range(3):
        write(tmp_path / f"image{number}.nii.gz", image(number))
        write(tmp_path / f"label{number}.nii.gz", mask())
        write(tmp_path / f"rater{number}.nii.gz", mask())
    scribble = np.full(SHAPE, 255, dtype=np.uint8)
    scribble[2, 2, 2], scribble[0, 0, 0] = 1, 0
    write(tmp_path / "scribble.nii.gz", scribble)
    records: list[Content] = [
        {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"} for number in range(3)
    ]
    records[0] |= {"labels": ["rater0.nii.gz", "rater1.nii.gz"], "scribble": "scribble.nii.gz", "group": "a"}
    labels = {"0": "background", "1": "organ"}
    return tmp_path, {"name": "tiny", "labels": labels, "training": records[:2], "validation": records[2:]}


def save(root: Path, content: Content) -> None:
    (root / "dataset.json").write_text(json.dumps(content))


def change(name: str, make: Callable[[], np.ndarray], affine: np.ndarray | None = None) -> Break:
    """Replace a file's voxels."""
    return lambda root, content: write(root / name, make(), affine)


def record(key: str, value: Any, section: str = "training", index: int = 0) -> Break:
    """Set one key of one record."""
    return lambda root, content: content[section][index].update({key: value})


def top(key: str, value: Any) -> Break:
    """Set one top-level key of the JSON."""
    return lambda root, content: content.update({key: value})


def values(*pairs: tuple[int, float], dtype: type = np.float32) -> Callable[[], np.ndarray]:
    """A mask with some flat positions overwritten."""

    def make() -> np.ndarray:
        voxels: np.ndarray = mask().astype(dtype)
        for position, value in pairs:
            voxels.flat[position] = value
        return voxels

    return make


def with_nan() -> np.ndarray:
    voxels = image(0)
    voxels[0, 0, :3] = np.nan
    return voxels


def shifted() -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = 5.0
    return affine


def truncate(root: Path, content: Content) -> None:
    whole = gzip.decompress((root / "image0.nii.gz").read_bytes())
    (root / "image0.nii.gz").write_bytes(gzip.compress(whole[:-100]))


def cut_compressed_stream(root: Path, content: Content) -> None:
    write(root / "image0.nii.gz", image(0, (12, 10, 8)))  # large enough for its header to survive
    whole = (root / "image0.nii.gz").read_bytes()
    (root / "image0.nii.gz").write_bytes(whole[: len(whole) // 2])


def no_nifti(root: Path, content: Content) -> None:
    (root / "image0.nii.gz").write_bytes(b"<html>404 not found</html>")


def set_spacing(value: float) -> Break:
    """Write a voxel size into the raw header (nibabel would refuse to)."""

    def run(root: Path, content: Content) -> None:
        raw = bytearray(gzip.decompress((root / "image0.nii.gz").read_bytes()))
        struct.pack_into("<f", raw, 76 + 4 * 2, value)  # pixdim[2]
        (root / "image0.nii.gz").write_bytes(gzip.compress(bytes(raw)))

    return run


def remove_file(name: str) -> Break:
    return lambda root, content: (root / name).unlink()


def png(root: Path, content: Content) -> None:
    (root / "image0.png").write_bytes(b"png")
    content["training"][0]["image"] = "image0.png"


def second_channel(shape: tuple[int, ...]) -> Break:
    def run(root: Path, content: Content) -> None:
        write(root / "second.nii.gz", image(9, shape))
        for section in ("training", "validation"):
            for entry in content[section]:
                entry["image"] = [entry["image"], "second.nii.gz"]

    return run


def uneven_channels(root: Path, content: Content) -> None:
    write(root / "second.nii.gz", image(9))
    content["training"][0]["image"] = ["image0.nii.gz", "second.nii.gz"]


def repeat_record(root: Path, content: Content) -> None:
    content["training"].append(dict(content["training"][0]))


def shared_name(root: Path, content: Content) -> None:
    (root / "other").mkdir()
    write(root / "other" / "image1.nii", image(7))
    content["training"].append({"image": "other/image1.nii"})


def copy_in_both(root: Path, content: Content) -> None:
    write(root / "copy.nii.gz", image(0))
    content["validation"].append({"image": "copy.nii.gz", "label": "rater2.nii.gz"})


def same_image_in_both(root: Path, content: Content) -> None:
    content["validation"].append({"image": "image1.nii.gz", "label": "label1.nii.gz"})


def same_group_in_both(root: Path, content: Content) -> None:
    content["validation"][0]["group"] = "a"


def colour(root: Path, content: Content) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    write(root / "image0.nii.gz", np.zeros(SHAPE, dtype=kind))


def mixed_axes(root: Path, content: Content) -> None:
    write(root / "image1.nii.gz", image(1, (6, 5)))
    write(root / "label1.nii.gz", mask()[..., 1])


def remove_sections(root: Path, content: Content) -> None:
    del content["training"], content["validation"]


def wrong_checksum(root: Path, content: Content) -> None:
    """One wrong bit in the last eight bytes, where gzip keeps checksum and length: nibabel never looks there."""
    write(root / "image0.nii.gz", image(0, (24, 20, 16)))  # a small file is read to its end
    raw = bytearray((root / "image0.nii.gz").read_bytes())
    raw[-6] ^= 1
    (root / "image0.nii.gz").write_bytes(raw)
    nib.Nifti1Image.from_filename(root / "image0.nii.gz").get_fdata()


def scaled(spacing: float, unit: str | None = None, shape: tuple[int, ...] = SHAPE) -> Break:
    """The first case in voxels of another size, in mm."""

    def run(root: Path, content: Content) -> None:
        for name, voxels in (("image0", image(0, shape)), ("label0", mask(shape))):
            file = nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0]))
            if unit is not None:
                file.header.set_xyzt_units(unit)
            nib.save(file, root / f"{name}.nii.gz")
        del content["training"][0]["labels"], content["training"][0]["scribble"]

    return run


def slope(value: float) -> Break:
    """int16 voxels with a scale in the header."""

    def run(root: Path, content: Content) -> None:
        file = nib.Nifti1Image((100 * image(0)).astype(np.int16), np.eye(4))
        file.header.set_slope_inter(value, 0.0)
        raw = bytearray(file.to_bytes())
        struct.pack_into("<f", raw, 112, value)
        (root / "image0.nii.gz").write_bytes(gzip.compress(bytes(raw)))

    return run


def header_bytes(place: int, *values: int) -> Break:
    """Overwrite bytes of the header."""

    def run(root: Path, content: Content) -> None:
        raw = bytearray(gzip.decompress((root / "image0.nii.gz").read_bytes()))
        raw[place : place + len(values)] = bytes(values)
        (root / "image0.nii.gz").write_bytes(gzip.compress(bytes(raw)))

    return run


def one_voxel(value: float) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        voxels = image(0).astype(np.float64)
        voxels[0, 0, 0] = value
        return voxels

    return make


def scribbles_alone(*marked: int) -> Break:
    """A training set that knows its structures from scribbles of these values alone."""

    def run(root: Path, content: Content) -> None:
        scribble = np.full(SHAPE, 255, dtype=np.uint8)
        scribble.flat[: len(marked)] = marked
        write(root / "scribble.nii.gz", scribble)
        content["labels"] = {"0": "background", "1": "organ", "2": "tumour"}
        content["training"] = [{"image": "image0.nii.gz", "scribble": "scribble.nii.gz"}]

    return run


def zero_for_unlabelled() -> np.ndarray:
    scribble = np.zeros(SHAPE, dtype=np.uint8)
    scribble[2, 2, :] = 1
    return scribble


FILE_FAULTS: dict[str, tuple[Break, str]] = {
    "missing image": (remove_file("image0.nii.gz"), r"image0.nii.gz \(training/image\): there is no such file"),
    "missing label": (remove_file("label1.nii.gz"), r"label1.nii.gz \(training/label\): there is no such file"),
    "other format": (png, r"image0.png .*: is not a NIfTI file"),
    "no NIfTI inside": (no_nifti, r"image0.nii.gz .*: cannot be read as NIfTI"),
    "truncated": (truncate, r"image0.nii.gz .*: is truncated or damaged"),
    "cut stream": (cut_compressed_stream, r"image0.nii.gz .*: is truncated or damaged"),
    "wrong checksum": (wrong_checksum, r"image0.nii.gz .*: is truncated or damaged.*CRC check failed"),
    "metres": (
        scaled(0.000625),
        r"image0.nii.gz .*has voxels of 0.000625 x 0.000625 x 0.000625 mm and so an extent of 0.00375 x 0.003125 x "
        r"0.0025 mm. Fix: if these are metres, multiply pixdim, qform and sform by 1000 and set xyzt_units to 2",
    ),
    "metres that are said": (scaled(0.000625, "meter"), r"x 0.0025 mm, and xyzt_units says metres. Fix: if these are"),
    "micrometres": (
        scaled(625.0, "micron"),
        r"has voxels of 625 x 625 x 625 mm and so an extent of 3750 x 3125 x 2500 mm, and xyzt_units says "
        r"micrometres. Fix: if these are micrometres, multiply pixdim, qform and sform by 0.001",
    ),
    "huge extent": (scaled(99.0, shape=(110, 5, 4)), r"and so an extent of 10890 x 495 x 396 mm. Fix: if these are"),
    "huge voxel": (
        change("image0.nii.gz", one_voxel(1e30)),
        r"has intensities from -.* to 1e\+30 \(1 voxels beyond 1e\+15\). Fix: correct scl_slope",
    ),
    "huge negative voxel": (change("image0.nii.gz", one_voxel(-1e18)), r"has intensities from -1e\+18 to"),
    "float64 beyond float32": (change("image0.nii.gz", one_voxel(1e200)), r"to 1e\+200 \(1 voxels beyond 1e\+15\)"),
    "huge slope": (slope(1e38), r"has intensities from -\S+e\+\d+ to \S+e\+\d+ \(1?\d\d voxels beyond 1e\+15\)"),
    "tiny slope": (slope(1e-30), r"has intensities from -\S+e-\d+ to \S+e-\d+, which float32 does not tell apart"),
    "far from zero": (
        change("image0.nii.gz", lambda: 1e9 + image(0).astype(np.float64)),
        r"has intensities from 1e\+09 to 1e\+09, which float32 does not tell apart",
    ),
    "unknown number type": (header_bytes(70, 3), r"image0.nii.gz .*: cannot be read as NIfTI \(data code 3 not"),
    "offset within the header": (header_bytes(108, 0, 0, 176, 65), r"cannot be read as NIfTI \(vox offset 22 too low"),
    "colour": (colour, r"image0.nii.gz .*colour or complex"),
    "zero spacing": (set_spacing(0.0), r"has voxel spacing 1 x 0 x 1 mm, it must be above zero"),
    "negative spacing": (set_spacing(-2.0), r"has voxel spacing 1 x -2 x 1 mm, it must be above zero"),
    "one axis": (change("image0.nii.gz", lambda: image(0, (6,))), r"has shape \(6,\), which is neither 2D, 3D nor"),
    "undeclared channels": (
        change("image0.nii.gz", lambda: image(0, (*SHAPE, 3))),
        r"a fourth axis of length 3 that nothing declares",
    ),
    "label shape": (
        change("label0.nii.gz", lambda: mask((6, 5, 5))),
        r"label0.nii.gz .*has shape 6 x 5 x 5, its image image0.nii.gz has 6 x 5 x 4",
    ),
    "label affine": (change("label0.nii.gz", mask, shifted()), r"label0.nii.gz .*lies elsewhere in space .*up to 5 mm"),
    "label channels": (change("label0.nii.gz", lambda: mask((*SHAPE, 2))), r"is a label with a fourth axis"),
    "channel shape": (second_channel((6, 5, 3)), r"second.nii.gz .*6 x 5 x 3, the first channel image0.nii.gz has"),
    "four axes of several": (second_channel((*SHAPE, 2)), r"length 2 and is one of 2 channel files"),
    "NaN in image": (change("image0.nii.gz", with_nan), r"has 3 voxels that are NaN or infinite"),
    "constant image": (change("image0.nii.gz", lambda: 0 * image(0)), r"has the same value 0 everywhere"),
    "undeclared value": (
        change("label0.nii.gz", values((0, 3))),
        r"has label values 3, which `labels` does not declare",
    ),
    "mask of 255": (
        change("label0.nii.gz", values((0, 255))),
        r"has label values 255.*a mask stored as 0 and 255 must become 0 and 1",
    ),
    "negative value": (change("label0.nii.gz", values((0, -1))), r"has label values -1, which"),
    "fractional value": (change("label0.nii.gz", values((0, 0.37))), r"not whole numbers, such as 0.37"),
    "NaN in label": (change("label0.nii.gz", values((0, np.nan))), r"has label values that are NaN"),
    "full label that is empty": (
        record("empty", True),
        r"label0.nii.gz .*the record says that it is empty, but it has 18 voxels of structures. Fix: remove",
    ),
    "empty clean label": (change("label0.nii.gz", lambda: 0 * mask()), r"the clean label is empty"),
    "rater's shape": (
        change("rater1.nii.gz", lambda: mask((6, 5, 5))),
        r"rater1.nii.gz \(training/labels\): has shape",
    ),
    "rater's value": (change("rater1.nii.gz", values((0, 9))), r"\(training/labels\): has label values 9"),
    "scribble's value": (change("scribble.nii.gz", values((0, 7))), r"has scribble values 7"),
    "empty scribble": (
        change("scribble.nii.gz", lambda: np.full(SHAPE, 255, dtype=np.uint8)),
        r"the scribble marks no voxel",
    ),
    "scribble of zeros": (
        change("scribble.nii.gz", zero_for_unlabelled),
        r"the scribble marks every voxel: 96.7% are 0 \(background\), none is 255 \(unlabelled\). Fix: store 255 where",
    ),
    "scribbles of background": (
        scribbles_alone(0),
        r"training: the scribbles mark 0 \(background\) alone, so that a network learns to find nothing",
    ),
    "scribbles of one structure": (
        scribbles_alone(1),
        r"training: the scribbles mark 1 \(organ\) and nowhere the background \(0\), so that a network finds them",
    ),
    "scribbles of structures": (scribbles_alone(2, 1), r"the scribbles mark 1 \(organ\), 2 \(tumour\) and nowhere"),
    "reference shape": (record("reference", "second.nii.gz"), r"second.nii.gz \(training/reference\): there is no"),
    "uneven channels": (uneven_channels, r"has 2 channels, most cases have 1"),
    "mixed axes": (mixed_axes, r"image1.nii.gz .*has 2 axes, most cases have 3"),
    "repeated record": (repeat_record, r"training lists this image 2 times"),
    "shared name": (shared_name, r"2 images of training have the name image1, by which results are called: image1"),
    "shared label": (record("label", "label1.nii.gz"), r"2 different images of training share this label file"),
    "image in both": (same_image_in_both, r"training, validation: the image image1.nii.gz is in both sections"),
    "copy in both": (copy_in_both, r"copies of one image \(equal voxels\) in both sections"),
    "group in both": (same_group_in_both, r"training, validation: the group 'a' is in both sections"),
}

JSON_FAULTS: dict[str, tuple[Break, str]] = {
    "no labels": (lambda root, content: content.pop("labels"), r"`labels` is missing"),
    "labels of no use": (top("labels", "organ"), r"`labels` is 'organ', which names no structure"),
    "labels with a gap": (top("labels", {"0": "background", "2": "organ"}), r"label values are \[0, 2\]"),
    "labels without 0": (top("labels", {"1": "organ"}), r"label values are \[1\], they must count 0, 1"),
    "labels that repeat": (top("labels", {"a": 0, "b": 1, "c": 1}), r"without gap or repetition"),
    "one name twice": (top("labels", {"0": "a", "1": "b", "2": "b"}), r"`labels` names b more than once"),
    "ignore": (top("labels", {"a": 0, "b": 1, "ignore": 2}), r"`labels` holds nnU-Net's `ignore`"),
    "labels of words": (top("labels", {"a": "b"}), r"`labels` has keys that are no whole numbers: 'a'"),
    "regions": (top("labels", {"background": 0, "all": [1, 2]}), r"regions of nnU-Net"),
    "name is an object": (
        top("labels", {"0": "background", "1": {"name": "a"}}),
        r"`labels` has {'name': 'a'} where a",
    ),
    "name is a number": (top("labels", ["background", 7]), r"`labels` has 7 where a name is expected"),
    "name is blank": (top("labels", ["background", " "]), r"`labels` has ' ' where a name is expected"),
    "name is code": (
        top("labels", {"0": "background", "1": "$__import__('os').system('touch /tmp/x')"}),
        r"`labels` holds \"\$__import__.*a config would take what begins with \$ for code. Fix: rename it",
    ),
    "name is a reference": (
        top("labels", ["background", "@network"]),
        r"`labels` holds '@network': .* with @ for code",
    ),
    "name is a macro": (top("labels", {"background": 0, " %a": 1}), r"`labels` holds ' %a': .* with % for code"),
    "data set's name is code": (top("name", "$exit()"), r"`name` holds '\$exit\(\)': a config would take"),
    "data set's name is a list": (top("name", ["a"]), r"`name` is \['a'\] where a name is expected"),
    "channel's name is code": (top("channel_names", {"0": "$exit()"}), r"`channel_names` holds '\$exit\(\)': a config"),
    "channel's name is a list": (top("modality", {"0": ["MR"]}), r"`modality` is {'0': \['MR'\]} where the names of"),
    "misspelt label": (
        record("lable", "a.nii.gz"),
        r"training\[0\]/lable: is no key of a record, but like `label`. Fix",
    ),
    "misspelt quality": (record("labell_quality", "noisy"), r"/labell_quality: is no key .* like `label_quality`"),
    "capital letters": (record("Scribble", "a.nii.gz"), r"/Scribble: is no key of a record, but like `scribble`"),
    "hyphen": (record("label-quality", "noisy"), r"/label-quality: is no key of a record, but like `label_quality`"),
    "misplaced key": (
        record("scribble_unlabelled_value", 0),
        r"/scribble_unlabelled_value: is a key of the whole data set, not of a record. Fix: write it beside `labels`",
    ),
    "misspelt section": (top("trainning", []), r"trainning: is no key of the data contract, but like `training`"),
    "another word for a section": (top("val", []), r"val: is no key of the data contract, but like `validation`"),
    "misspelt top-level key": (
        top("scribble_unlabeled_value", 0),
        r"scribble_unlabeled_value: is no key of the data contract, but like `scribble_unlabelled_value`",
    ),
    "unlabelled is a label": (top("scribble_unlabelled_value", 1), r"1 is also the label value of 'organ'"),
    "unlabelled is a word": (top("scribble_unlabelled_value", "no"), r"scribble_unlabelled_value is 'no'"),
    "no section": (
        remove_sections,
        r"has no section of records",
    ),
    "empty section": (top("training", []), r"training: the section is empty"),
    "no validation": (
        lambda root, content: content.pop("validation"),
        r"there is no `validation` section.*common.data split .* --fraction 0.2 --seed 0",
    ),
    "section is a mapping": (top("training", {"a": 1}), r"training: is a dict where a list of records is expected"),
    "record is a path": (top("training", ["image0.nii.gz"]), r"training\[0\]: is 'image0.nii.gz' where a record"),
    "record without image": (top("training", [{"label": "label0.nii.gz"}]), r"training\[0\]: has no `image`"),
    "image is a number": (record("image", 3), r"training\[0\]/image: is 3 where a path or a list of paths is expected"),
    "label is a list": (record("label", ["a.nii.gz"]), r"training\[0\]/label: is .* where a path is expected"),
    "raters are a path": (record("labels", "a.nii.gz"), r"training\[0\]/labels: is .* where a list of paths"),
    "unknown quality": (record("label_quality", "good"), r"training\[0\]/label_quality: is 'good'"),
    "quality of nothing": (
        top("training", [{"image": "image0.nii.gz", "label_quality": "noisy"}]),
        r"label_quality: is given, but the record has no `label`",
    ),
    "empty is a word": (record("empty", "yes"), r"training\[0\]/empty: is 'yes'. Fix: write true or false"),
    "image for label": (
        record("label", "image0.nii.gz"),
        r"training\[0\]/label: names image0.nii.gz, which is the image",
    ),
    "one rater twice": (record("labels", ["rater0.nii.gz"] * 2), r"\[0\]/labels: names rater0.nii.gz 2 times"),
    "one channel twice": (record("image", ["image0.nii.gz"] * 2), r"\[0\]/image: names image0.nii.gz 2 times"),
    "group is a list": (record("group", ["a"]), r"training\[0\]/group: is \['a'\] where a name or a number"),
}

FAULTS = {**FILE_FAULTS, **JSON_FAULTS}


def test_the_sound_data_set_has_no_fault(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    save(root, content)
    assert len(open_data(root, num_classes=2, in_channels=1).training) == 2


@pytest.mark.parametrize("name", FAULTS)
def test_fault(dataset: tuple[Path, Content], name: str) -> None:
    root, content = dataset
    spoil, message = FAULTS[name]
    spoil(root, content)
    save(root, content)
    with pytest.raises(DataError) as caught:
        open_data(root)
    told = [str(fault) for fault in caught.value.faults]
    assert any(re.search(message, fault) for fault in told), told
    for fault in caught.value.faults:
        assert fault.what and fault.fix and not fault.fix.endswith(".")


def test_every_fault_has_its_own_message() -> None:
    messages = [message for _, message in FAULTS.values()]
    # two ways to truncate a file, and nothing else, share their words
    assert len(set(messages)) >= len(messages) - 1 and len(messages) >= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, r"declares 2 classes .*the network has 4. Fix: use --num_classes 2"),
        ({"in_channels": 2}, r"images have 1 channel, the network takes 2. Fix: use --in_channels 1"),
        ({"needs": ["noisy"]}, r"the method needs training records with `label_quality: noisy`"),
        ({"needs": ["unlabelled"]}, r"the method needs training records without `label`"),
        ({"datalist": "other.json"}, r"other.json: there is no such file. Fix: name it with --datalist, here: dataset"),
    ],
)
def test_data_that_do_not_fit_the_method(dataset: tuple[Path, Content], options: dict[str, Any], message: str) -> None:
    root, content = dataset
    save(root, content)
    with pytest.raises(DataError, match=message):
        open_data(root, **options)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        ("label", r"needs training records with a `label`"),
        ("clean", r"needs training records with a clean `label`"),
        ("raters", r"needs training records with `labels`"),
        ("scribble", r"needs training records with a `scribble`"),
        ("validation", r"needs a `validation` section in which every record has a `label`"),
    ],
)
def test_data_without_labels(dataset: tuple[Path, Content], need: str, message: str) -> None:
    root, content = dataset
    content["training"] = [{"image": "image0.nii.gz"}]
    content["validation"] = [{"image": "image1.nii.gz"}]
    save(root, content)
    with pytest.raises(DataError, match=message):
        open_data(root, needs=[need])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dataset.json: cannot be read as JSON \(Expecting property name"),
        ("[]", r"dataset.json: holds a list where an object is expected"),
    ],
)
def test_no_json_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"training": [], "labels": {}, "training": []}',
            "the key `training` is given 2 times, of which only the last",
        ),
        ('{"labels": {"0": "a", "1": "b", "1": "c"}}', "the key `1` is given 2 times"),
        (
            '{"training": [{"image": "a.nii.gz", "label": "b.nii.gz", "label": "c.nii.gz"}]}',
            "the key `label` of the record with image 'a.nii.gz' is given 2 times, .*Fix: join them, or remove all but",
        ),
        ("[" * 100_000, r"dataset.json: cannot be read as JSON \("),
    ],
)
def test_nothing_of_the_json_gets_lost(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (
            (3.0, 1.0, 1.0),
            r"image0.nii.gz .*has 6 x 5 x 4 voxels of 1 x 1 x 1 mm; resampled to a spacing of 3 x 1 x 1 mm it has "
            r"2 x 5 x 4. Fix: correct pixdim in the file's header, or give a finer --spacing",
        ),
        ((1.0, 1e-5, 1e-5), r"it has 6 x 500000 x 400000, which take 4800 GB of this machine's .*a coarser --spacing"),
        ((1.0, 1.0, 1.0), None),
        ((2.0, 1.5, 1.25), r"it has 3 x 3 x 3"),
        ((1.5, 1.25, 1.0), None),
    ],
)
def test_images_that_resampling_would_spoil(
    dataset: tuple[Path, Content], spacing: tuple[float, ...], message: str | None
) -> None:
    root, content = dataset
    save(root, content)
    if message is None:
        open_data(root, spacing=spacing)
        return
    with pytest.raises(DataError, match=message):
        open_data(root, spacing=spacing)


def test_the_spacing_goes_with_the_axes_of_the_patient(dataset: tuple[Path, Content]) -> None:
    """An image stored with its third axis from left to right is resampled along that axis by the first number."""
    root, content = dataset
    turned = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    write(root / "image2.nii.gz", image(2), turned)
    write(root / "label2.nii.gz", mask(), turned)
    save(root, content)
    with pytest.raises(DataError, match=r"^image2.nii.gz .*to a spacing of 1 x 1 x 1.4 mm it has 6 x 5 x 3. Fix"):
        open_data(root, spacing=(1.4, 1.0, 1.0))


@pytest.mark.parametrize(
    ("stored", "factor"),
    [(np.int16, 1), (np.uint8, 1), (np.float64, 1), (">f4", 1), (np.int16, -1)],
)
def test_a_copy_of_another_type_leaks_too(dataset: tuple[Path, Content], stored: Any, factor: int) -> None:
    """The digest is of the voxels as they are loaded; -0 and 0 are equal."""
    root, content = dataset
    voxels = np.random.default_rng(5).integers(0, 200, SHAPE) * factor
    write(root / "image0.nii.gz", voxels.astype(stored))
    floats = voxels.astype(np.float32)
    floats[voxels == 0] = -0.0
    write(root / "copy.nii.gz", floats)
    content["validation"].append({"image": "copy.nii.gz", "label": "rater2.nii.gz"})
    save(root, content)
    with pytest.raises(DataError, match=r"copies of one image \(equal voxels\) in both sections"):
        open_data(root)


def test_equal_voxels_in_another_shape_are_no_copy(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    write(root / "copy.nii.gz", image(0).reshape(SHAPE[::-1], order="F"))
    write(root / "shape.nii.gz", mask(SHAPE[::-1]))
    content["validation"].append({"image": "copy.nii.gz", "label": "shape.nii.gz"})
    save(root, content)
    open_data(root)


def test_a_large_image_is_compared_to_its_end(dataset: tuple[Path, Content], monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of a few voxels, as one of hundreds of megabytes is."""
    monkeypatch.setattr("common.data.contract.volumes.PART", 7)
    root, content = dataset
    other = image(0)
    other[-1, -1, -1] += 1
    write(root / "copy.nii.gz", other)
    content["validation"].append({"image": "copy.nii.gz", "label": "rater2.nii.gz"})
    save(root, content)
    open_data(root)
    copy_in_both(root, content)
    save(root, content)
    with pytest.raises(DataError, match=r"copies of one image"):
        open_data(root)


LINKED = "it is a hard link of the original: save under a new name and rename over it"


@pytest.mark.parametrize("name", ["tiny spacing", "huge spacing", "in metres", "NaN", "no spacing"])
def test_advice_to_change_a_hard_link_says_how(dataset: tuple[Path, Content], name: str) -> None:
    """A converter links images to the download, which a change in place would change as well."""
    root, content = dataset
    spoil = {
        "tiny spacing": scaled(1e-6),
        "huge spacing": scaled(1e4),
        "in metres": scaled(1e-3),
        "NaN": change("image0.nii.gz", with_nan),
        "no spacing": header_bytes(80, *struct.pack("<f", 0.0)),
    }[name]
    spoil(root, content)
    save(root, content)
    for linked in (False, True):
        if linked:
            (root / "download").hardlink_to(root / "image0.nii.gz")
        with pytest.raises(DataError) as caught:
            open_data(root)
        (told,) = [str(fault) for fault in caught.value.faults if fault.where.startswith("image0.nii.gz")]
        assert (LINKED in told) == linked, told


def test_advice_that_leaves_the_file_as_it_is_says_nothing_of_links(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    (root / "download").hardlink_to(root / "image0.nii.gz")
    (root / "image0.nii.gz").write_bytes(b"no image")
    save(root, content)
    with pytest.raises(DataError) as caught:
        open_data(root)
    assert "hard link" not in str(caught.value)


def test_units_that_the_sizes_contradict_are_noted(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    scaled(0.7, "micron")(root, content)
    save(root, content)
    (note,) = open_data(root).notes
    assert "xyzt_units says micrometres: they are taken as mm; set xyzt_units to 2 (mm)" in note


def test_a_pixdim_that_the_affine_contradicts_is_noted(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    header_bytes(80, *struct.pack("<f", 2.0))(root, content)
    save(root, content)
    (note,) = open_data(root).notes
    assert "has pixdim 2 x 1 x 1 mm, but an affine with voxels of 1 x 1 x 1 mm, which counts" in note


@pytest.mark.parametrize("key", ["patient_id", "folder", "scanner", "image_meta"])
def test_a_longer_word_is_a_key_of_its_own(dataset: tuple[Path, Content], key: str) -> None:
    root, content = dataset
    content["training"][0][key] = "a"
    save(root, content)
    assert any(f"have a key `{key}` that the data contract does not know" in note for note in open_data(root).notes)


def test_another_list_of_records_is_noted(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    content["holdout"] = [{"image": "image0.nii.gz"}]
    save(root, content)
    assert any("`holdout` is no section of the data contract" in note for note in open_data(root).notes)


def test_scribbles_of_one_kind_beside_labels_are_no_fault(dataset: tuple[Path, Content]) -> None:
    root, content = dataset
    scribble = np.full(SHAPE, 255, dtype=np.uint8)
    scribble[0, 0, 0] = 1
    write(root / "scribble.nii.gz", scribble)
    save(root, content)
    open_data(root)


def test_uncompressed_and_joined_gz_files_are_read(dataset: tuple[Path, Content]) -> None:
    """Two gzip members one after the other are one file."""
    root, content = dataset
    whole = gzip.decompress((root / "image0.nii.gz").read_bytes())
    (root / "image0.nii.gz").write_bytes(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))
    write(root / "image1.nii", image(1))
    content["training"][1]["image"] = "image1.nii"
    save(root, content)
    open_data(root)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        open_data(tmp_path / "nowhere")
