"""Images to segment, from whatever the user has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data import DataError, images_to_segment
from common.data import inputs as module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one in a folder below, beside files that are none."""
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for name in ("b.nii.gz", "below/a.nii", "notes.txt", "._b.nii.gz", ".writing-x.nii.gz"):
        (root / name).write_bytes(b"")
    return root


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


def test_the_phantom_when_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Data:
        def section(self, name: str) -> list[dict[str, str]]:
            return [{"image": name}]

    def open_data(*args: Any, **kwargs: Any) -> Data:
        asked.append((args, kwargs))
        return Data()

    monkeypatch.setattr(module, "open_data", open_data)
    assert images_to_segment(phantom="raters", phantom_dir=tmp_path) == [{"image": "test"}]
    assert asked == [((None,), {"phantom": "raters", "phantom_dir": tmp_path})]


# what is wrong


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder. Fix: give a NIfTI file or a folder of them"):
        images_to_segment(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["notes.txt", "below"])
def test_no_image_there(name: str, folder: Path) -> None:
    (folder / "below" / "a.nii").unlink()
    with pytest.raises(DataError, match="no NIfTI image here. Fix: give a file that ends in .nii or .nii.gz"):
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
