"""Every bundle in a real MONAI Label server, asked over HTTP; the server's environment is made once, in a cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.monai_label.__main__ import check
from tests.bundles.conftest import BUNDLES


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_real_server(name: str, tmp_path: Path) -> None:
    assert check([name], tmp_path) == []
