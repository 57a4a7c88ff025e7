"""Number types of operators that half precision would ruin."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(x: torch.Tensor) -> AbstractContextManager[object]:
    """Leave autocast out on the device of x, in a ``with`` statement.

    ``torch.export`` knows no autocast and cannot save a change of it: nothing is done there.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), no_autocast(x):
        ...     print((x @ x).dtype)
        torch.float32
    """
    if torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
