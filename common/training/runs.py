"""Weights and runs on disk: nothing that a run leaves is overwritten in silence, nothing damaged is loaded."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from ..files import CALIBRATION_FILE, RESUME_FILE, UNFINISHED

FINAL_FILE = "model_final.pt"
LOGS = ("events.out.tfevents.*", "history.csv")
RESULTS = ("metrics.csv", "audit.csv")  # what an evaluation and an audit leave in their folders
TIME = "%Y-%m-%d_%H-%M-%S_%f"
logger = logging.getLogger(__name__)


def is_first_rank() -> bool:
    """Whether this process is the one that writes files."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let the first process go through a block before the others do, for example to make what all will read."""
    first = is_first_rank()
    if not first:
        distributed.barrier()
    yield
    if first and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def start_run(ckpt_dir: str | os.PathLike[str], output_dir: str | os.PathLike[str], resume: bool = False) -> None:
    """Make the folders of a run ready, before anything is written to them.

    A new run sets aside what an earlier one left: copies of its weights go to ``ckpt_dir/previous/<time>`` (the
    weights themselves stay until better ones replace them, as a server may be using them); its logs and results move
    along.

    Args:
        ckpt_dir: folder of the weights.
        output_dir: folder of logs and results.
        resume: continue the run in these folders.

    Raises:
        FileNotFoundError: when there is nothing to resume.
    """
    last = Path(ckpt_dir) / RESUME_FILE
    if is_first_rank():
        for folder in (Path(ckpt_dir), Path(output_dir)):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # a folder that cannot be written to shows now, not after an epoch
                pass
        _remove_unfinished(Path(ckpt_dir))
    if resume:
        if not last.is_file():
            raise FileNotFoundError(
                f"{last}: nothing to resume. Fix: leave out --resume, or give the run's --ckpt_dir."
            )
        return
    if is_first_rank():
        _set_aside(Path(ckpt_dir), Path(output_dir))


def _remove_unfinished(ckpt_dir: Path) -> None:
    """Weights that a kill left half written."""
    for path in ckpt_dir.glob(f"{UNFINISHED}*"):
        path.unlink()


def _set_aside(ckpt_dir: Path, output_dir: Path) -> None:
    kept = [*ckpt_dir.glob("*.pt"), ckpt_dir / RESUME_FILE, ckpt_dir / CALIBRATION_FILE]
    weights = [path for path in sorted(kept) if path.is_file()]
    logs = [path for pattern in LOGS for path in sorted(output_dir.glob(pattern))]
    if not weights and not logs:
        return
    logs += sorted({table.parent for name in RESULTS for table in output_dir.glob(f"*/{name}")})
    newest = max(path.stat().st_mtime for path in [*weights, *logs])
    previous = ckpt_dir / "previous" / datetime.fromtimestamp(newest).strftime(TIME)
    previous.mkdir(parents=True, exist_ok=True)
    for path in weights:
        shutil.copy2(path, previous / path.name)
    (ckpt_dir / RESUME_FILE).unlink(missing_ok=True)
    for path in logs:
        shutil.move(path, previous / path.name)
    logger.warning(f"An earlier run's weights and logs are kept in {previous}; --resume true would have continued it.")


def start_results(folder: str | os.PathLike[str]) -> None:
    """Make way for new results: earlier ones in the folder move to ``previous/<folder>_<time>`` beside it.

    All else in the folder moves along; a ``results_dir`` that holds more than results is refused with the settings.
    """
    place = Path(folder)
    tables = [place / name for name in RESULTS if (place / name).is_file()]
    if tables:
        when = datetime.fromtimestamp(max(path.stat().st_mtime for path in tables)).strftime(TIME)
        kept = place.parent / "previous" / f"{place.name}_{when}"
        kept.parent.mkdir(exist_ok=True)
        shutil.move(place, kept)
        logger.warning(f"Earlier results are kept in {kept}.")


def read_saved(path: str | os.PathLike[str], what: str, fix: str) -> dict[str, Any]:
    """Read what ``torch.save`` wrote, tensors and plain values only, and see that no byte of it has changed since.

    Args:
        path: the file.
        what: what it should be, for messages.
        fix: what to do if it is not, for messages; ends in a full stop.

    Raises:
        ValueError: when the file is cut, damaged, or something else.
    """
    damaged = None
    with open(path, "rb"):  # a file that may not be read says so itself
        pass
    try:
        # torch writes a checksum of each tensor, but does not look at it when it reads
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        content: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a parser meets in bytes that are none of torch's; it would hide the fix
        raise ValueError(f"{path}: this is no {what}. {fix}") from None
    if damaged:
        raise ValueError(f"{path}: is damaged: the checksum of {damaged.partition('/')[2]} is wrong. {fix}")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}. {fix}")
    return content


def refuse_non_finite(state: dict[str, Any], path: str | os.PathLike[str], fix: str) -> None:
    """Raise a ValueError that names the first tensor of a state dict with values that are NaN or infinite."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            wrong = int(value.numel() - torch.isfinite(value).sum())
            raise ValueError(f"{path}: {name} has {wrong} of {value.numel()} values that are NaN or infinite. {fix}")


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load trained weights into a network.

    Args:
        network: the network they were trained in.
        path: a state dict, or one under the key ``model`` or ``network``.

    Returns:
        the network.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds no weights, damaged ones, or those of another network; the message names what
            differs.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no trained weights here. Fix: train first, or give the run's --ckpt_dir.")
    fix = "Fix: give a model.pt that training wrote."
    state = read_saved(path, "file of weights", fix)
    for key in ("model", "network"):
        if key in state and isinstance(state[key], dict):
            state = state[key]
    expected = network.state_dict()
    differing = [
        f"{name}: {_shape(state[name])} in the file, {tuple(value.shape)} in the network"
        for name, value in expected.items()
        if name in state and _shape(state[name]) != tuple(value.shape)
    ]
    strange = sorted(map(str, set(expected) ^ set(state)))
    if differing or strange:
        raise ValueError(
            f"{path}: these weights are of another network ({'; '.join([*differing, *strange][:3])}). "
            "Fix: give the --num_classes and --in_channels of the training."
        )
    refuse_non_finite(state, path, fix)
    network.load_state_dict(state)
    return network


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
