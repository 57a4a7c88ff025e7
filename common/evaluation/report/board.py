"""The pages' pictures in TensorBoard, beside the curves of the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_SUFFIX = ".pictures"


def show_on_tensorboard(folder: Path, pictures: Mapping[str, NDArray[Any]]) -> None:
    """Write pictures to TensorBoard's file in a folder, in the place of those that an earlier call wrote there.

    Args:
        folder: to write to; below the folder that ``tensorboard --logdir`` is given.
        pictures: by name; (height, width, 3) uint8.
    """
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and most programs do without

    for earlier in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
        earlier.unlink()
    writer: Any = SummaryWriter(str(folder), filename_suffix=_SUFFIX)
    for name, pixels in pictures.items():
        writer.add_image(name, pixels, dataformats="HWC")
    writer.close()
