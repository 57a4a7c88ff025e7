"""Opening a data set: read, check all of it, or make the phantom where none is given."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import short_last_words
from ...training.runs import first_rank_first
from ..simulation.phantom import make_phantom
from .checks import check_records
from .dataset import SegmentationData, compare_classes, missing_needs, read_data
from .faults import DataError

logger = logging.getLogger(__name__)


def open_data(
    dataset_dir: str | os.PathLike[str] | None = None,
    datalist: str = "dataset.json",
    needs: Sequence[str] = (),
    num_classes: int | None = None,
    in_channels: int | None = None,
    spatial_dims: int | None = None,
    spacing: Sequence[float] | None = None,
    phantom: str = "noisy",
    phantom_dir: str | os.PathLike[str] = "data/phantom",
    check: bool = True,
) -> SegmentationData:
    """Read a data set and check all of it, or make the phantom when no data set is given.

    Args:
        dataset_dir: folder of the data set; None makes the phantom, once.
        datalist: name of the JSON in that folder.
        needs: what the method needs, from :data:`~common.data.contract.dataset.NEEDS`.
        num_classes: classes of the network, background included; None takes any number.
        in_channels: image channels of the network; None takes any number.
        spatial_dims: axes of the images that the bundle takes; None takes any number.
        spacing: voxel size in mm that images will be resampled to; None if they are not.
        phantom: kind of phantom, see :func:`make_phantom`.
        phantom_dir: folder that holds one folder for each kind of phantom.
        check: also open every file; without it only the JSON is checked.

    Returns:
        the data set.

    Raises:
        DataError: with every fault that was found and its fix.
        ValueError: an unknown item in ``needs``.
    """
    if dataset_dir is None:
        dataset_dir = _open_phantom(phantom, Path(phantom_dir))
    data, faults = read_data(dataset_dir, datalist)
    faults += missing_needs(data, needs)
    faults += compare_classes(data, num_classes, datalist)
    if check:
        faults += check_records(data, in_channels, spatial_dims, spacing)
    if faults:
        raise DataError(faults, str(data.root / datalist))
    for note in data.notes:
        logger.warning(note)
    return data


class LazyData:
    """What :func:`open_data` gives, opened when something of it is first asked for.

    MONAI Label replaces the lists of training and validation; then nothing is asked for, and no phantom is made.

    Args:
        arguments: of :func:`open_data`.
    """

    def __init__(self, **arguments: Any) -> None:
        short_last_words()
        self._arguments = arguments

    def training_records(self, needs: Sequence[str], kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Records of ``training``, asked for with what the method needs of the data set.

        Args:
            needs: from :data:`~common.data.contract.dataset.NEEDS`.
            kinds: leave out, with a note, records of none of these kinds, see
                :data:`~common.data.contract.records.KINDS`.

        Raises:
            DataError: with every fault of the data set and every need that is not met.
        """
        if "_data" not in self.__dict__:
            self._data = open_data(**self._arguments, needs=needs)
        elif faults := missing_needs(self._data, needs):
            raise DataError(faults, str(self._data.root))
        self._training = self._data.section("training", *kinds)
        return self._training

    def validation_records(self, training: Sequence[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
        """Records of ``validation``, or none if the training's came from elsewhere and there is only the phantom.

        MONAI Label hands over records of its own to train with, and may hand over none to validate with: then the
        phantom must not choose the weights.

        Args:
            training: the records that are trained with.
            kinds: leave out, with a note, records of none of these kinds.

        Raises:
            DataError: with every fault of the data set.
        """
        # told by their images, as an overlay may have made new records of them
        own = _images(self.__dict__.get("_training", []))
        if self._arguments.get("dataset_dir") is None and not (own and _images(training) <= own):
            logger.warning("The training's records came from elsewhere, without any to validate with: none validates.")
            return []
        return list(self.section("validation", *kinds))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if "_data" not in self.__dict__:
            self._data = open_data(**self._arguments)
        return getattr(self.__dict__["_data"], name)


def _images(records: Sequence[dict[str, Any]]) -> set[str]:
    return {str(record.get("image")) for record in records}


def _open_phantom(kind: str, phantom_dir: Path) -> Path:
    directory = phantom_dir / kind
    message = f"No dataset_dir given: using the built-in phantom data set ({kind}) in {directory}"
    # without a configured log this line must not get lost: it tells that the results are not the user's data
    logger.info(message) if logger.isEnabledFor(logging.INFO) and logger.hasHandlers() else print(message)
    with first_rank_first():
        return make_phantom(directory, kind=kind)
