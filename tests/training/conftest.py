"""What the tests of the training loop share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tiny import PRECISIONS, tiny_precision


@pytest.fixture(params=PRECISIONS)
def every_precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once in each precision that the machine has; the tiny trainers that it makes use it."""
    token = tiny_precision.set(request.param)
    yield request.param
    tiny_precision.reset(token)
