"""The script that makes the docs' pictures: drawing, without its trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ci import pictures

ROOT = Path(__file__).resolve().parents[2]


def volumes(**more: Any) -> dict[str, Any]:
    """A case of two structures."""
    true = np.zeros((24, 24, 6), dtype=np.uint8)
    true[4:12, 6:14, 1:5], true[12:18, 6:14, 1:5] = 1, 2
    image = (true.astype(int) * 300 + np.random.default_rng(0).normal(100, 10, true.shape)).astype(np.int16)
    return {"image": image, "true": true, "pred": true, **more}


def test_every_bundle_has_a_picture() -> None:
    names = {path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json")}
    assert names == set(pictures.CASES) == set(pictures.SETTINGS)


@pytest.mark.parametrize("kind", ["label", "scribble", "none", "raters"])
def test_pictures_are_small_and_made_anew_alike(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    (tmp_path / "bundles" / "toy").mkdir(parents=True)
    case = volumes()
    masks = np.stack([case["true"], np.roll(case["true"], 1, axis=0)])
    strokes = np.where(np.arange(24)[:, None, None] % 4 == 0, case["true"], 255).astype(np.uint8)
    spread = np.abs(masks[0].astype(float) - masks[1]).clip(0, 1)
    case |= {
        "label": {"label": masks[1]},
        "scribble": {"scribble": strokes},
        "none": {},
        "raters": {"raters": masks, "samples": masks, "disagreement": spread},
    }[kind]
    place = pictures.draw("toy", case)
    assert place == tmp_path / "bundles" / "toy" / "docs" / "example.png"
    first = place.read_bytes()
    assert len(first) < pictures.LARGEST and Image.open(place).size == (880, 253)
    assert pictures.draw("toy", case).read_bytes() == first
    case["image"] = case["image"][::-1]
    assert pictures.draw("toy", case).read_bytes() != first


def test_a_page_is_made_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (88, 113, 1), dtype=np.uint8).repeat(3, axis=2)
    noise = noise.repeat(8, axis=0).repeat(8, axis=1) * 10
    noise[:40, :40] = (255, 0, 0)  # a legend
    Image.fromarray(noise).save(tmp_path / "page.png")
    place = pictures._smaller(tmp_path / "page.png", tmp_path / "docs" / "page.png")
    small = Image.open(place)
    assert place.stat().st_size <= pictures.LARGEST and 500 <= small.width <= 800
    red, green, _ = np.asarray(small.convert("RGB"))[3, 3]
    assert red > 240 and green < 15


def test_a_page_that_is_not_there_and_names_that_are_unknown() -> None:
    with pytest.raises(SystemExit, match="is not there. Fix: run `bash ci/demo.sh` first"):
        pictures._smaller(Path("/nowhere/report.png"), Path("x.png"))
    with pytest.raises(SystemExit, match="nobody: unknown. Fix: name some of alc"):
        pictures.main("nobody")


def test_the_caption_is_written_once_and_says_how_the_training_was_shortened(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Toy\n\nWords.\n\n## Model overview\n\nMore.\n")
    for settings in ({"max_epochs": 3, "val_interval": 2}, {"val_interval": 2}):
        pictures._write_block(page, pictures._caption("alc", settings), before="## Model overview")
    text = page.read_text()
    assert text.count("(example.png)") == 1 and text.index("example.png") < text.index("## Model overview")
    assert "Shortened" not in text and text.startswith("# Toy\n\nWords.\n\n<!-- picture -->")
    assert "Shortened training (max_epochs 3 in the place of 20): `" in pictures._caption("alc", {"max_epochs": 3})
    assert pictures._caption("alc", {}).endswith("`python -m ci.pictures alc --full`.")
    with pytest.raises(SystemExit, match="has no heading '## Nothing'"):
        pictures._write_block(page, "x", before="## Nothing")
