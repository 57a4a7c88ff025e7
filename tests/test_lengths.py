"""No file of the code grows beyond what a reader takes in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines


def test_no_file_of_the_code_is_longer() -> None:
    files = [path for folder in ("common", "bundles", "ci") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
