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


@pytest.mark.parametrize("name", BUNDLES)
def test_each_bundles_docs_open_with_its_picture(name: str) -> None:
    docs = ROOT / "bundles" / name / "docs"
    opening = (docs / "README.md").read_text().split("\n## ")[0]
    assert re.search(r"!\[.{20,}\]\(example\.png\)", opening) and f"python -m ci.pictures {name}" in opening
    assert 5_000 < (docs / "example.png").stat().st_size < 100_000


def test_pictures_of_the_readme_are_small() -> None:
    found = re.findall(r"!\[[^\]]+\]\((docs/[\w.]+)\)", (ROOT / "README.md").read_text())
    assert found == ["docs/report.png", "docs/audit.png"]
    assert all(5_000 < (ROOT / file).stat().st_size < 100_000 for file in found)


@pytest.mark.parametrize("page", ["annotators", "engineers"])
def test_pages_speak_of_every_bundle(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert all(f"`{name}`" in text for name in BUNDLES)
