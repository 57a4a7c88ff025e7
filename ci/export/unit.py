"""What the spatial sizes of an exported bundle's network are multiples of, an axis, written into its metadata.

Runs in the bundle's folder, in a process that knows nothing of the repository (``scripts`` is the bundle's own):

    python .../ci/export/unit.py

The network is asked: it is given images of ever larger units until it takes one. Along each axis the unit is a multiple
of what the ``strides`` of its config multiply to, where it has them.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

LEAST = 8  # unit of a network without strides, whatever smaller sizes it takes
POWERS = tuple(2**power for power in range(7))  # the unit is the least multiple of one of these


class UnitError(RuntimeError):
    """The network takes no image."""


def read_strides(config: ConfigParser, axes: int) -> list[int]:
    """What the strides of a config's network multiply to along each axis; :data:`LEAST` where it has none."""
    if "strides" not in config["network_def"]:
        return [LEAST] * axes
    strides = config.get_parsed_content("network_def#strides")
    return [math.prod(size if isinstance(size, int) else size[axis] for size in strides) for axis in range(axes)]


def find_unit(network: torch.nn.Module, channels: int, steps: Sequence[int]) -> list[int]:
    """The least unit that a network takes.

    Args:
        network: ready to predict.
        channels: of an image.
        steps: what the unit is a multiple of, an axis.

    Raises:
        UnitError: it takes none of those tried.
    """
    reason = ""
    for power in POWERS:
        unit = [math.lcm(step, power) for step in steps]
        # odd multiples, no two units; the first for instance normalisation, which fails where a single voxel is left
        size = [3 * unit[0], *unit[1:]]
        try:
            found = list(network(torch.zeros(1, channels, *size)).shape[2:])
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        if found == size:
            return unit
        reason = f"an image of {size} becomes {found}"
    raise UnitError(f"the network of inference.yaml takes no image that was tried, such as of {size}: {reason}")


def write_unit(folder: Path) -> None:
    """Put the unit of a bundle's network into its metadata; the folder is the first on ``sys.path``.

    Raises:
        UnitError: its network takes no image.
    """
    config = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    path = folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    answer = metadata["network_data_format"]["outputs"]["pred"]
    network = config.get_parsed_content("network_def").cpu().eval()
    unit = find_unit(network, image["num_channels"], read_strides(config, len(image["spatial_shape"])))
    image["spatial_shape"] = answer["spatial_shape"] = [f"{size}*n" for size in unit]
    path.write_text(json.dumps(metadata, indent=4) + "\n")


def main() -> int:
    """Command line."""
    sys.path[0] = str(Path.cwd())  # the bundle's folder in the place of this file's
    warnings.filterwarnings("ignore")
    try:
        with torch.no_grad():
            write_unit(Path())
    except UnitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
