"""What cases are called."""

from __future__ import annotations

from typing import Any

import pytest

from common.data.contract.names import case_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/case_1.nii.gz", "case_1"),
        ("case.1.nii", "case.1"),
        (["/data/case_1_flair.nii.gz", "/data/case_1_t1.nii.gz"], "case_1_flair"),
    ],
)
def test_case_name(source: Any, name: str) -> None:
    assert case_name(source) == name
