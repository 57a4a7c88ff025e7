"""A converter is one function in one file: what it finds is written, and the command line knows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import DataError, open_data
from common.data.__main__ import main
from common.data.converters import CONVERTERS
from common.data.converters.base import Case, Source, Volume, converter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def toy() -> Iterator[None]:
    """The smallest converter: text files of brightnesses, of which those above 0.5 are the structure."""

    @converter("toy", "text files of brightnesses")
    def convert_toy(source: Path, threshold: float = 0.5) -> Source:
        """Convert."""

        def cases() -> Iterator[Case]:
            for path in sorted(source.glob("*.txt")):
                image = np.loadtxt(path, ndmin=2, dtype=np.float32)[..., None].repeat(4, axis=2)
                label = (image > threshold).astype(np.uint8)
                section = "test" if path.stem.startswith("test") else "training"
                yield Case(
                    path.stem,
                    Volume(image, np.eye(4)),
                    Volume(label, np.eye(4)),
                    section=section,
                    group=f"patient {path.stem}",
                )

        return Source("toy", {"0": "background", "1": "bright"}, cases(), {"channel_names": {"0": "light"}})

    yield
    del CONVERTERS["toy"]


@pytest.fixture
def download(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a", "b", "test_c")):
        values = np.random.default_rng(number).random((5, 6))
        np.savetxt(tmp_path / "in" / f"{name}.txt", values)
    return tmp_path / "in"


def test_what_a_converter_finds_is_written(toy: None, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = download.parent / "out"
    main(["convert", "toy", str(download), "--output", str(output), "--threshold", "0.25"])
    assert f"Converted data set in {output}" in capsys.readouterr().out
    content = json.loads((output / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "light"} and len(content["training"]) == 2
    expected = {"image": "images/test_c.nii.gz", "label": "labels/test_c.nii.gz", "group": "patient test_c"}
    assert content["test"] == [expected]
    label = nib.Nifti1Image.from_filename(output / "labels" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj)[..., 0], np.loadtxt(download / "a.txt") > 0.25)
    content["validation"] = content.pop("test")
    (output / "dataset.json").write_text(json.dumps(content))
    assert open_data(output, num_classes=2, in_channels=1).num_classes == 2


def test_command_line_and_its_help_name_it(toy: None, download: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, entry in CONVERTERS.items():
        assert f"{name} {entry.words}" in said
    assert "--threshold" in said
    with pytest.raises(SystemExit):
        main(["convert", "toy", str(download), "--output", str(download.parent / "out"), "--colour", "red"])
    assert "--colour: is no option of toy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "tov", str(download), "--output", str(download.parent / "out")])
    assert "toy" in capsys.readouterr().err


def test_a_failing_converter_leaves_nothing(toy: None, download: Path) -> None:
    (download / "b.txt").write_text("no numbers")
    with pytest.raises(ValueError, match="no numbers|could not convert"):
        CONVERTERS["toy"].convert(str(download), str(download.parent / "out"))
    assert [path.name for path in download.parent.iterdir()] == ["in"]
    with pytest.raises(DataError, match="there is no such folder"):
        CONVERTERS["toy"].convert(str(download / "nowhere"), str(download.parent / "out"))


def test_readme_lists_them_all() -> None:
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if "common.data convert la2018" in line)
    listed = re.findall(r"[a-z]\w+", line.partition("#")[2])
    assert {*listed, "la2018"} - {"or"} == set(CONVERTERS)
