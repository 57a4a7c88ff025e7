"""Makes an app for MONAI Label: ``main.py``, its tasks and strategies, and the bundles, each exported to stand alone.

    python ci/label_app.py my_app                                     # the bundles that were trained here
    python ci/label_app.py my_app --bundles alc multicure --untrained --labels atrium   # to begin with nothing

and then, in MONAI Label's environment:

    monailabel start_server --app my_app --studies /my/images
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ci.export import ROOT, ExportError, export_bundle

APP = Path(__file__).resolve().parent / "app"
# weights as the network's own initialisation draws them; runs in the exported folder, by a process of its own
FRESH_WEIGHTS = """
import sys, torch
from monai.bundle import ConfigParser
sys.path.insert(0, ".")
torch.manual_seed(0)
parser = ConfigParser()
parser.read_config("configs/inference.yaml")
network = parser.get_parsed_content("network_def")
torch.save(network.state_dict(), "models/model.pt")
"""


def bundle_names() -> list[str]:
    """The bundles of this repository."""
    return sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))


def make_app(
    folder: Path,
    bundles: Sequence[str] = (),
    untrained: bool = False,
    labels: Sequence[str] = (),
    overlay: Sequence[Path] = (),
    weights: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an app.

    Args:
        folder: folder to make.
        bundles: names of those that it serves; default: all that were trained, or, if untrained, all.
        untrained: give the bundles weights that nothing has trained, to begin with.
        labels: names of the structures, background left out; default: the bundle's own.
        overlay: configs whose values are written into the one bundle.
        weights: of the one bundle; default ``bundles/<name>/models/model.pt``.
        overwrite: replace an earlier app's code and those of its bundles that are named.

    Returns:
        the folder.

    Raises:
        ExportError: says what is wrong and what to do.
    """
    trained = [name for name in bundle_names() if (ROOT / "bundles" / name / "models" / "model.pt").is_file()]
    names = list(bundles) or (bundle_names() if untrained else trained)
    if not names:
        raise ExportError("no bundle has weights. Fix: train one first, or give --untrained to begin with nothing.")
    if len(names) != 1 and (overlay or weights is not None):
        raise ExportError("--overlay and --weights are one bundle's. Fix: name it by --bundles.")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ExportError(f"{folder} is there already. Fix: give --overwrite, or another folder.")
    (folder / "model").mkdir(parents=True, exist_ok=True)
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=folder) as working:
        dataset_dir = _data_set_of(labels, Path(working)) if labels else None
        for name in names:
            written, _ = export_bundle(
                name, Path(working), weights, untrained, overlay=overlay, dataset_dir=dataset_dir
            )
            if untrained:
                _draw_weights(written)
            target = folder / "model" / name
            if target.exists():
                shutil.rmtree(target)
            os.replace(written, target)
    return folder


def _data_set_of(labels: Sequence[str], folder: Path) -> Path:
    """A folder with a JSON that names the classes, as an export reads them."""
    named = {str(value): name for value, name in enumerate(["background", *labels])}
    (folder / "dataset.json").write_text(json.dumps({"labels": named}))
    return folder


def _draw_weights(bundle: Path) -> None:
    (bundle / "models").mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", FRESH_WEIGHTS], cwd=bundle, capture_output=True, text=True)
    if done.returncode != 0:
        raise ExportError(f"{bundle.name}: its network cannot be made:\n{done.stderr[-2000:]}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--bundles", nargs="+", default=[], metavar="NAME", help="default: those with weights")
    parser.add_argument("--untrained", action="store_true", help="weights that nothing has trained, to begin with")
    parser.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="your structures, in their order")
    parser.add_argument("--overlay", type=Path, nargs="+", default=[], help="configs to write into the one bundle")
    parser.add_argument("--weights", type=Path, help="weights of the one bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier app")
    arguments = parser.parse_args()
    try:
        make_app(**vars(arguments))
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}: start it by monailabel start_server --app {arguments.folder} --studies DIR")
    return 0
