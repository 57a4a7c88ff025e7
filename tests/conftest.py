"""What all tests share.

The repository root stands on ``sys.path`` (``pythonpath`` of the pytest settings), so tests import ``common.x`` and,
because ``bundles`` is a namespace package, ``bundles.<name>.scripts.x``: each bundle's ``scripts`` under its own name,
several of them side by side in one process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Every test starts from the same random state and hands back the one it found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
