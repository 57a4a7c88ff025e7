"""Write a stand-alone copy of a bundle, for the MONAI model zoo, MONAI Label or any folder without this repository.

    python ci/export_bundle.py alc --output exported

makes ``exported/alc`` and ``exported/alc_v<version>.zip``:

- the needed part of ``common``, found by following imports, stands in ``scripts/_common`` (MONAI Label tells bundles
  apart by forgetting modules named ``scripts``, so nothing may stand outside that package);
- configs name it by ``scripts._common``, and ``bundle_root`` is ``.``;
- the trained weights are in ``models/model.pt``, the temperature that ``calibrating`` fitted to them beside it.

What a run was given on top of the configs goes along, so that annotation servers, which read no overlays, find it:

    python ci/export_bundle.py alc --output exported --overlay bundles/alc/configs/la.yaml \\
        --dataset_dir /data/la --weights runs/la/model.pt

writes the overlay's values into the configs, the classes of the data set's JSON into configs and metadata, and into
the metadata what sizes another network or other strides take, see ``ci/export/unit.py``.

``--torchscript``, ``--onnx`` and ``--program`` add the network as ``models/model.ts``, ``model.onnx``, ``model.pt2``,
each compared with the network at other sizes than it was made with, see ``ci/export/formats.py``. A file of more than
25 MB is named in ``large_files.yml``, as the model zoo wants it, with the address that ``--large_files_url`` begins.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from . import zoo
from .bundle import BundleExport
from .configs import read_labels, read_overlays
from .package import ROOT, ExportError

# what annotation servers do with an export first of all; in its folder, by a process that knows nothing else
TRY_WEIGHTS = """
import sys
import torch
from monai.bundle import ConfigParser
sys.path.insert(0, ".")
parser = ConfigParser()
parser.read_config("configs/inference.yaml")
state = torch.load("models/model.pt", map_location="cpu", weights_only=True)
parser.get_parsed_content("network_def").load_state_dict(state.get("model", state))
"""


def _run_in(folder: Path, *words: str, what: str, fix: str) -> str:
    """What a Python process prints that knows nothing of the repository.

    Raises:
        ExportError: it failed; ``{}`` in ``what`` is its last line.
    """
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason"])[-1].strip().rstrip(".")
        raise ExportError(f"{what.format(said)}. Fix: {fix}")
    return done.stdout


def _try_weights(folder: Path) -> None:
    what = "the weights do not go into the network of inference.yaml ({})"
    fix = "give the overlay and the data set that they were trained with, by --overlay and --dataset_dir."
    _run_in(folder, "-c", TRY_WEIGHTS, what=what, fix=fix)


def _write_unit(folder: Path) -> None:
    """What sizes the network takes, into the metadata."""
    program = Path(__file__).with_name("unit.py")
    _run_in(folder, str(program), what="{}", fix="give overlays that fit together, by --overlay.")


def _write_formats(folder: Path, names: Sequence[str]) -> None:
    """The network in other formats."""
    program = Path(__file__).with_name("formats.py")
    fix = "leave that format out; models/model.pt is what all others are made from."
    said = _run_in(folder, str(program), *names, what="{}", fix=fix)
    print("\n".join(line for line in said.splitlines() if line.startswith("model.")))


def _find_weights(bundle: Path, weights: Path | None, without: bool) -> Path | None:
    if without:
        return None
    path = bundle / "models" / "model.pt" if weights is None else weights
    if not path.is_file():
        raise ExportError(f"{path}: no weights. Fix: train first, name a file by --weights, or give --without-weights.")
    return path


def export_bundle(
    name: str,
    output: Path,
    weights: Path | None = None,
    without_weights: bool = False,
    overwrite: bool = False,
    overlay: Sequence[Path] = (),
    dataset_dir: Path | None = None,
    datalist: str = "dataset.json",
    latent: bool = False,
    torchscript: bool = False,
    onnx: bool = False,
    program: bool = False,
    large_files_url: str | None = None,
    root: Path = ROOT,
) -> tuple[Path, Path]:
    """Export a bundle.

    Args:
        name: name of the bundle.
        output: folder to write ``<name>`` and ``<name>_v<version>.zip`` to.
        weights: state dict to ship; default ``bundles/<name>/models/model.pt``.
        without_weights: ship none.
        overwrite: replace an earlier export.
        overlay: configs whose values are written into train.yaml and inference.yaml, the later before the earlier.
        dataset_dir: data set that the weights were trained with; its classes are written into configs and metadata.
        datalist: name of its JSON.
        latent: write the network with its latent code too, see :mod:`.latent`.
        torchscript: write ``models/model.ts`` too.
        onnx: write ``models/model.onnx`` too.
        program: write ``models/model.pt2``, of ``torch.export``, too.
        large_files_url: folder in the web where files of more than 25 MB will be.
        root: folder of the repository.

    Returns:
        the folder and the zip.

    Raises:
        ExportError: says what is wrong and what to do.
    """
    labels = None if dataset_dir is None else read_labels(dataset_dir, datalist)
    export = BundleExport(name, root, read_overlays(overlay), labels)
    folder, archive = output / name, output / f"{name}_v{export.version}.zip"
    if there := [str(path) for path in (folder, archive) if path.exists() and not overwrite]:
        raise ExportError(f"{there[0]} is there already. Fix: give --overwrite or another --output.")
    shipped = _find_weights(export.source, weights, without_weights)
    chosen = {"model.ts": torchscript, "model.onnx": onnx, "model.pt2": program}
    formats = [file for file, wanted in chosen.items() if wanted]
    if formats and shipped is None:
        raise ExportError(f"{formats[0]} needs weights. Fix: leave --without-weights out, or that format.")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=output) as working:
        fresh, packed = Path(working) / name, Path(working) / archive.name
        export.write(fresh, shipped)
        if shipped is not None:
            _try_weights(fresh)
        if export.settles_sizes:
            _write_unit(fresh)
        if latent:
            from .latent import export_latent  # torch, which other exports do not need

            export_latent(fresh)
        if formats:
            _write_formats(fresh, formats)
        zoo.write_large_files(fresh, large_files_url)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(fresh.rglob("*")):
                file.write(path, path.relative_to(working))
        if folder.exists():
            os.replace(folder, Path(working) / "replaced")
        os.replace(fresh, folder)
        os.replace(packed, archive)
    return folder, archive


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the bundle")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--weights", type=Path, help="state dict to ship; default bundles/NAME/models/model.pt")
    parser.add_argument("--without-weights", action="store_true", help="ship no weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--overlay", type=Path, nargs="*", default=[], help="configs whose values are written in")
    parser.add_argument("--dataset_dir", type=Path, help="data set whose classes are written in")
    parser.add_argument("--datalist", default="dataset.json", help="name of its JSON")
    parser.add_argument("--latent", action="store_true", help="TorchScript and ONNX of (image, latent) to logits too")
    parser.add_argument("--torchscript", action="store_true", help="write models/model.ts too")
    parser.add_argument("--onnx", action="store_true", help="write models/model.onnx too")
    parser.add_argument("--program", action="store_true", help="write models/model.pt2, of torch.export, too")
    parser.add_argument("--large_files_url", help="folder in the web where files of more than 25 MB will be")
    arguments = parser.parse_args()
    try:
        folder, archive = export_bundle(**vars(arguments))
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}\n{archive}")
    return 0
