"""Images to segment, from whatever the user has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.data import DataError, images_to_segment
from common.data.contract import inputs as module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one in a folder below, beside files that are none."""
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for name in ("notes.txt", "._b.nii.gz", ".writing-x.nii.gz"):
        (root / name).write_bytes(b"")
    for name in ("b.nii.gz", "below/a.nii"):
        save(root / name)
    return root


def save(path: Path, shape: tuple[int, ...] = (4, 4, 3), broken: bool = False) -> None:
    voxels = np.random.default_rng(len(path.name)).normal(size=shape).astype(np.float32)
    voxels[0] = np.nan if broken else voxels[0]
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def names(records: list[dict[str, Any]]) -> list[Any]:
    return [record["image"] for record in records]


def test_one_file(folder: Path) -> None:
    assert names(images_to_segment(folder / "b.nii.gz")) == [str(folder / "b.nii.gz")]
    assert names(images_to_segment(datalist=folder / "b.nii.gz")) == [str(folder / "b.nii.gz")]


def test_a_folder_with_all_below(folder: Path) -> None:
    assert names(images_to_segment(folder)) == [str(folder / "b.nii.gz"), str(folder / "below" / "a.nii")]


def test_a_linked_folder_is_a_folder(folder: Path) -> None:
    (folder / "below").rename(folder.parent / "disk")
    (folder / "below").symlink_to(folder.parent / "disk")
    (folder / "again").symlink_to(folder)
    assert names(images_to_segment(folder)) == [str(folder / "b.nii.gz"), str(folder / "below" / "a.nii")]


@pytest.mark.parametrize("given", ["disk", "images/out"])
def test_results_behind_a_link_are_no_images(given: str, folder: Path) -> None:
    (folder.parent / "disk").mkdir()
    save(folder.parent / "disk" / "c_pred.nii.gz")
    (folder / "out").symlink_to(folder.parent / "disk")
    assert len(images_to_segment(folder, output_dir=folder.parent / given)) == 2


def test_paths_are_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names(images_to_segment("b.nii.gz")) == [str(folder / "b.nii.gz")]


@pytest.mark.parametrize(
    "content",
    [
        ["b.nii.gz", "below/a.nii"],
        [{"image": "b.nii.gz"}, {"image": ["below/a.nii"], "label": "ignored.nii.gz"}],
        {"name": "a data set", "training": ["c.nii.gz"], "test": [{"image": "b.nii.gz"}, {"image": "below/a.nii"}]},
    ],
)
def test_a_json(content: Any, folder: Path) -> None:
    expected = [{"image": str(folder / "b.nii.gz")}, {"image": str(folder / "below" / "a.nii")}]
    assert images_to_segment(datalist=write(folder / "list.json", content)) == expected
    elsewhere = write(folder.parent / "list.json", content)
    assert images_to_segment(folder, elsewhere) == expected


def test_several_channels(folder: Path) -> None:
    path = write(folder / "list.json", [["b.nii.gz", "below/a.nii"]])
    assert names(images_to_segment(datalist=path)) == [[str(folder / "b.nii.gz"), str(folder / "below" / "a.nii")]]


def test_the_phantom_when_there_is_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Data:
        def section(self, name: str) -> list[dict[str, str]]:
            return [{"image": str(folder / "b.nii.gz"), "name": name}]

    def open_data(*args: Any, **kwargs: Any) -> Data:
        asked.append((args, kwargs))
        return Data()

    monkeypatch.setattr(module, "open_data", open_data)
    (record,) = images_to_segment(phantom="raters", phantom_dir=tmp_path)
    assert record["name"] == "test"
    assert asked == [((None,), {"phantom": "raters", "phantom_dir": tmp_path})]


# what is wrong


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="there is no such file or folder. Fix: give a NIfTI file, or a folder of them or of DICOM"
    ):
        images_to_segment(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["notes.txt", "below"])
def test_no_image_there(name: str, folder: Path) -> None:
    (folder / "below" / "a.nii").unlink()
    with pytest.raises(DataError, match="no NIfTI image and no DICOM series here. Fix: give a file that ends in .nii"):
        images_to_segment(folder / name)


@pytest.mark.parametrize("content", ["{", "\ufeff"])
def test_a_json_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        images_to_segment(datalist=tmp_path / "list.json")


def test_no_such_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list.json: cannot be read as JSON \(.*No such file"):
        images_to_segment(datalist=tmp_path / "list.json")


@pytest.mark.parametrize("content", [[], {}, {"training": ["a.nii.gz"]}, {"test": []}])
def test_a_json_without_images(content: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it lists no image. Fix: give a list of paths, or a section `test`"):
        images_to_segment(datalist=write(tmp_path / "list.json", content))


@pytest.mark.parametrize("content", [3, "b.nii.gz", {"test": "b.nii.gz"}])
def test_a_json_that_is_no_list(content: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no list of images"):
        images_to_segment(datalist=write(tmp_path / "list.json", content))


def test_all_faults_are_told_at_once(folder: Path) -> None:
    content = ["b.nii.gz", "gone.nii.gz", {"label": "a.nii.gz"}, 3, [], ["b.nii.gz", "lost.nii.gz"]]
    with pytest.raises(DataError) as caught:
        images_to_segment(datalist=write(folder / "list.json", content))
    message = str(caught.value)
    assert "5 faults" in message
    assert "gone.nii.gz: there is no such file" in message and "lost.nii.gz: there is no such file" in message
    assert all(f"item {number}: names no image" in message for number in (2, 3, 4))


def test_images_of_one_name_would_overwrite_each_other(folder: Path) -> None:
    (folder / "below" / "b.nii.gz").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"^b: several images have this name, .* would overwrite .*/b.nii.gz, .*/b.nii.gz"
    ):
        images_to_segment(folder)


def test_two_endings_are_one_name(folder: Path) -> None:
    (folder / "b.nii").write_bytes(b"")
    with pytest.raises(DataError, match="several images have this name"):
        images_to_segment(folder)


@pytest.mark.parametrize(
    ("shape", "broken", "message"),
    [
        ((4, 4, 3), True, "c.nii.gz .*: has 12 voxels that are NaN or infinite"),
        ((4, 4), False, "c.nii.gz .*: has 2 axes, the bundle takes 3D images. Fix: store slices as a volume"),
        ((4, 4, 3, 2), False, "c.nii.gz .*: has a fourth axis of length 2 that nothing declares"),
    ],
)
def test_a_faulty_image_is_told_before_any_is_segmented(
    shape: tuple[int, ...], broken: bool, message: str, folder: Path
) -> None:
    save(folder / "c.nii.gz", shape, broken)
    with pytest.raises(DataError, match=message):
        images_to_segment(folder, in_channels=1, spatial_dims=3)


def test_results_among_the_images_are_no_images(folder: Path) -> None:
    (folder / "out" / "b").mkdir(parents=True)
    save(folder / "out" / "b" / "b_pred.nii.gz")
    assert len(images_to_segment(folder, output_dir=folder / "out")) == 2


def leave_results(folder: Path, case: str) -> None:
    (folder / case).mkdir(parents=True)
    for postfix in ("pred", "uncertainty"):
        save(folder / case / f"{case}_{postfix}.nii.gz")


def test_results_of_an_earlier_inference_are_left_out_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_results(folder / "elsewhere", "b")
    leave_results(folder, "a")
    found = images_to_segment(folder, output_dir=folder / "out")
    assert names(found) == [str(folder / "b.nii.gz"), str(folder / "below" / "a.nii")]
    message = f"{folder}: 4 files are results of earlier inferences, such as a/a_pred.nii.gz: left out"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_images_that_are_called_like_results_stay(folder: Path) -> None:
    """A folder a patient, as many data sets have it, and a file that ends like a result, but is of no image here."""
    for name in ("c/c_t1.nii.gz", "d/d.nii.gz", "d/d_pred.nii.gz", "e_pred.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        save(folder / name)
    leave_results(folder, "gone")  # whose image is not here: nobody knows
    found = {Path(image).relative_to(folder).as_posix() for image in names(images_to_segment(folder))}
    expected = {"b.nii.gz", "below/a.nii", "c/c_t1.nii.gz", "d/d.nii.gz", "d/d_pred.nii.gz", "e_pred.nii.gz"}
    assert found == expected | {"gone/gone_pred.nii.gz", "gone/gone_uncertainty.nii.gz"}


def test_results_may_go_where_the_images_are(folder: Path) -> None:
    assert len(images_to_segment(folder, output_dir=folder)) == 2
    leave_results(folder, "b")  # what that has written
    assert len(images_to_segment(folder, output_dir=folder)) == 2
    assert len(images_to_segment(folder, output_dir=folder.parent)) == 2


def test_an_image_that_resampling_would_spoil_is_told(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)2 faults.*has 4 x 4 x 3 voxels of 1 x 1 x 2 mm; resampled to a spacing of 2 x"
    ):
        images_to_segment(folder, spacing=[2.0, 1.0, 1.0])


def test_an_image_in_metres_is_told(folder: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.eye(4)[..., None] + np.zeros(3), np.diag([0.0006, 0.0006, 0.0006, 1])), folder / "m.nii"
    )
    with pytest.raises(DataError, match=r"m.nii .*has voxels of 0.0006 x 0.0006 x 0.0006 mm .*if these are metres"):
        images_to_segment(folder)


def test_a_list_with_a_key_twice_is_told(folder: Path) -> None:
    (folder / "list.json").write_text('{"test": ["b.nii.gz"], "test": ["below/a.nii"]}')
    with pytest.raises(DataError, match="the key `test` is given 2 times"):
        images_to_segment(datalist=folder / "list.json")


def test_a_list_is_looked_for_in_the_data_set_first(folder: Path) -> None:
    write(folder / "list.json", ["b.nii.gz"])
    assert names(images_to_segment(folder, "list.json")) == [str(folder / "b.nii.gz")]
