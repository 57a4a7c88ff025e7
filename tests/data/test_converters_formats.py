"""Converters of data sets in formats other than NIfTI (Analyze, MetaImage), on small trees made here."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data.contract.faults import DataError
from common.data.converters.iseg import convert_iseg2017, read_analyze
from common.data.converters.mhd import read_mhd
from common.data.converters.promise12 import convert_promise12
from tests.data.test_converters import listing, load
from tests.data.test_converters_challenges import AFFINE, agrees, blocks, fails, passes_check, picture, placed

# iSeg 2017


def analyze(path: Path, volume: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.25, 2.0)) -> None:
    """An Analyze pair in big-endian order, with a trailing axis of 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.AnalyzeHeader(endianness=">")
    header.set_data_dtype(volume.dtype)
    header.set_data_shape((*volume.shape, 1))
    header.set_zooms((*spacing, 1.0))
    nib.AnalyzeImage(volume[..., None], None, header).to_filename(str(path))


def iseg(root: Path) -> Path:
    for number in (1, 2, 10):
        for channel, name in enumerate(("T1", "T2")):
            analyze(root / "iSeg-2017-Training" / f"subject-{number}-{name}.hdr", picture(10 * number + channel))
        label = root / "iSeg-2017-Training" / f"subject-{number}-label.hdr"
        analyze(label, blocks(10, 150, 250).astype(np.uint8))
    for name in ("T1", "T2"):
        analyze(root / "iSeg-2017-Testing" / f"subject-11-{name}.hdr", picture(0))
    return root


def test_iseg2017(tmp_path: Path) -> None:
    output = convert_iseg2017(str(iseg(tmp_path / "in")), str(tmp_path / "out"))
    content = listing(output)
    assert sorted(record["group"] for record in content["training"]) == ["subject-1", "subject-10", "subject-2"]
    # the first axis runs to the left (radiological), the origin is in the middle
    expected = np.diag([-1.0, 1.25, 2.0, 1.0])
    expected[:3, 3] = [11.5, -1.25 * 11.5, -2.0 * 3.5]
    for record in content["training"]:
        placed(output, record, expected)
        agrees(output, record, blocks(1, 2, 3))
    second = next(record for record in content["training"] if record["group"] == "subject-2")
    np.testing.assert_array_equal(load(output / second["image"][1])[0], picture(21))
    passes_check(output)
    more = listing(convert_iseg2017(str(tmp_path / "in"), str(tmp_path / "more"), unlabelled=True))
    assert [record["group"] for record in more["training"] if "label" not in record] == ["subject-11"]


def test_iseg2017_refuses(tmp_path: Path) -> None:
    root = iseg(tmp_path / "in")
    name = root / "iSeg-2017-Training" / "subject-1-label.hdr"
    analyze(name, blocks(10, 150, 200).astype(np.uint8))
    fails(convert_iseg2017, root, r"label.hdr: holds the values \[200\]")
    name.with_suffix(".img").write_bytes(b"short")
    fails(convert_iseg2017, root, "label.hdr: cannot be read as Analyze")
    name.with_suffix(".img").unlink()
    fails(convert_iseg2017, root, "label.img: is missing")
    raw = bytearray(name.read_bytes())
    raw[80:84] = b"\0\0\0\0"  # pixdim[1]
    name.write_bytes(raw)
    name.with_suffix(".img").write_bytes(b"")
    with pytest.raises(DataError, match="spacing|cannot be read"):
        read_analyze(name)


# PROMISE12


def metaimage(path: Path, volume: np.ndarray, compressed: bool = False, keys: dict[str, str] | None = None) -> None:
    """A MetaImage of which positions are left-posterior-superior, with its voxels beside the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = keys or {}
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    data = volume.tobytes(order="F")
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(volume.dtype.byteorder == ">"),
        "CompressedData": str(compressed),
        "TransformMatrix": " ".join(map(str, (to_lps[:3, :3] / spacing).T.ravel())),
        "Offset": " ".join(map(str, to_lps[:3, 3])),
        "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, volume.shape)),
        "ElementType": {"i2": "MET_SHORT", "u1": "MET_UCHAR", "i1": "MET_CHAR", "f4": "MET_FLOAT"}[
            volume.dtype.str[1:]
        ],
        **keys,
        "ElementDataFile": keys.get("ElementDataFile", path.with_suffix(".raw").name),
    }
    path.write_text("".join(f"{key} = {value}\n" for key, value in header.items()))
    path.with_suffix(".raw").write_bytes(zlib.compress(data) if compressed else data)


def promise(root: Path) -> Path:
    for number in range(3):
        metaimage(root / "Training" / f"Case{number:02d}.mhd", picture(number))
        mask = blocks(1).astype(np.int8)
        metaimage(root / "Training" / f"Case{number:02d}_segmentation.mhd", mask, compressed=number == 1)
    metaimage(root / "TestData" / "Case00.mhd", picture(9))
    return root


def test_promise12(tmp_path: Path) -> None:
    output = convert_promise12(str(promise(tmp_path / "in")), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["Case00", "Case01", "Case02"]
    for record in content["training"]:
        placed(output, record, AFFINE)
        agrees(output, record, blocks(1))
    passes_check(output)
    more = listing(convert_promise12(str(tmp_path / "in"), str(tmp_path / "more"), unlabelled=True))
    assert "test_Case00" in [record["group"] for record in more["training"] if "label" not in record]


def test_promise12_with_the_test_cases_as_published(tmp_path: Path) -> None:
    """Three folders that number their cases alike, all with segmentations; a test list decides where there is one."""
    for folder, seed in (("training_data", 0), ("test_data", 3), ("livechallenge_test_data", 6)):
        for number in range(3 if folder == "training_data" else 2):
            name = f"Case{number:02d}"
            metaimage(tmp_path / "in" / folder / f"{name}.mhd", picture(seed + number))
            metaimage(tmp_path / "in" / folder / f"{name}_segmentation.mhd", blocks(1).astype(np.int8))
    output = convert_promise12(str(tmp_path / "in"), str(tmp_path / "out"))
    content = listing(output)
    assert [record["group"] for record in content["training"]] == ["Case00", "Case01", "Case02"]
    held = ["livechallenge_Case00", "livechallenge_Case01", "test_Case00", "test_Case01"]
    assert [record["group"] for record in content["test"]] == held
    for seed, record in zip((6, 7, 3, 4), content["test"], strict=True):
        np.testing.assert_array_equal(load(output / record["image"])[0], picture(seed))
        agrees(output, record, blocks(1))
    passes_check(output)
    (tmp_path / "test.txt").write_text("Case01\n")
    listed = listing(
        convert_promise12(str(tmp_path / "in"), str(tmp_path / "listed"), test_list=str(tmp_path / "test.txt"))
    )
    assert [record["group"] for record in listed["test"]] == ["Case01"] and len(listed["training"]) == 6


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "|u1", "<f4", ">f4"])
def test_mhd_types_and_byte_orders(tmp_path: Path, dtype: str, compressed: bool) -> None:
    volume = (picture(3) // 4).astype(dtype)
    metaimage(tmp_path / "a.mhd", volume, compressed=compressed)
    read = read_mhd(tmp_path / "a.mhd")
    np.testing.assert_array_equal(read.voxels, volume)
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-9)
    assert read.voxels.dtype.isnative


def test_mhd_rows_of_the_matrix_are_axes(tmp_path: Path) -> None:
    """A turn by 90 degrees by hand: the second voxel of the first axis lies 2 mm further to anterior."""
    turned = {"TransformMatrix": "0 -1 0 1 0 0 0 0 1", "Offset": "5 6 7", "ElementSpacing": "2 3 4"}
    metaimage(tmp_path / "a.mhd", picture(0), keys=turned)
    affine = read_mhd(tmp_path / "a.mhd").affine
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [-5, -6, 7, 1])
    np.testing.assert_allclose(affine @ [1, 0, 0, 1], [-5, -4, 7, 1])  # LPS (0, -1, 0) is towards anterior
    np.testing.assert_allclose(affine @ [0, 1, 0, 1], [-8, -6, 7, 1])


def test_mha_and_a_raw_file_with_a_header(tmp_path: Path) -> None:
    volume = picture(1)
    metaimage(tmp_path / "a.mha", volume, keys={"ElementDataFile": "LOCAL"})
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes() + volume.tobytes(order="F"))
    np.testing.assert_array_equal(read_mhd(tmp_path / "a.mha").voxels, volume)
    metaimage(tmp_path / "b.mhd", volume, keys={"HeaderSize": "3"})
    (tmp_path / "b.raw").write_bytes(b"abc" + volume.tobytes(order="F"))
    np.testing.assert_array_equal(read_mhd(tmp_path / "b.mhd").voxels, volume)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DimSize": "24 24"}, "DimSize 24 24"),
        ({"DimSize": "24 24 9"}, "has 9216 bytes of voxels, its header asks for 10368"),
        ({"DimSize": "a b c"}, "its header is incomplete"),
        ({"ElementType": "MET_OTHER"}, "stores MET_OTHER"),
        ({"ElementNumberOfChannels": "3"}, "of 3 channels"),
        ({"ElementSpacing": "1 0 1"}, "span no volume"),
        ({"ElementDataFile": "gone.raw"}, "gone.raw: is missing"),
        ({"ElementDataFile": "../../etc/passwd"}, "names its voxels as"),
        ({"ElementDataFile": "LIST"}, "names its voxels as"),
        ({"CompressedData": "True"}, "cannot be decompressed"),
        ({"HeaderSize": "-1"}, "HeaderSize -1"),
        ({"HeaderSize": "x"}, "header is incomplete"),
    ],
)
def test_mhd_refuses(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    metaimage(tmp_path / "a.mhd", picture(0), keys=keys)
    with pytest.raises(DataError, match=message):
        read_mhd(tmp_path / "a.mhd")


def test_promise12_refuses(tmp_path: Path) -> None:
    root = promise(tmp_path / "in")
    (root / "Training" / "Case01_segmentation.mhd").unlink()
    fails(convert_promise12, root, "no label for Case01")
    (root / "Training" / "Case01_segmentation.mhd").write_text("nothing")
    fails(convert_promise12, root, "Case01_segmentation.mhd: is no MetaImage header")
