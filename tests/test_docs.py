"""What the documents point at is there, and their pictures are small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
PAGES = [path for pattern in ("*.md", "docs/*.md", "bundles/*/docs/*.md") for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            file, _, heading = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            if heading:
                headings = re.findall(r"(?m)^#+ (.*)$", target.read_text())
                assert heading in [re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings], link


def faulty_pictures(root: Path) -> list[Path]:
    """Pictures that are large, or that no block of ``ci/pictures.py`` shows with the command that made it."""
    faulty = []
    for picture in [*root.glob("docs/*.png"), *root.glob("bundles/*/docs/*.png")]:
        of_root = picture.parent == root / "docs"
        page = root / "README.md" if of_root else picture.parent / "README.md"
        block = page.read_text().partition("<!-- picture -->")[2].partition("<!-- /picture -->")[0]
        shown = re.search(rf"!\[.{{20,}}\]\([\w/]*{re.escape(picture.name)}\)", block)
        told = of_root or f"python -m ci.pictures {picture.parts[-3]}" in block
        if not (shown and told and 1_000 < picture.stat().st_size < 100_000):
            faulty.append(picture)
    return faulty


def test_pictures_are_small_and_shown(tmp_path: Path) -> None:
    assert faulty_pictures(ROOT) == []
    docs = tmp_path / "bundles" / "toy" / "docs"
    docs.mkdir(parents=True)
    picture, page = docs / "example.png", docs / "README.md"
    picture.write_bytes(bytes(2_000))
    page.write_text("# Toy\n")
    assert faulty_pictures(tmp_path) == [picture]
    block = "![Image, label, answer and truth](example.png)\n\n`python -m ci.pictures toy`"
    page.write_text(f"# Toy\n\n<!-- picture -->\n{block}\n<!-- /picture -->\n")
    assert faulty_pictures(tmp_path) == []
    picture.write_bytes(bytes(200_000))
    assert faulty_pictures(tmp_path) == [picture]


@pytest.mark.parametrize("page", ["annotators", "engineers"])
def test_pages_speak_of_every_bundle(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert all(f"`{name}`" in text for name in BUNDLES)
