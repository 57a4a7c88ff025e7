"""The pictures of the docs, made from the built-in phantom: labels with their defect, the bundle's answer, the truth.

    python -m ci.pictures alc multicure            # trains, segments a case, draws bundles/<name>/docs/example.png
    python -m ci.pictures alc --full               # the same, trained as train.yaml says: minutes a bundle
    python -m ci.pictures alc --ckpt_dir DIR       # draws with the weights of a training that is done
    python -m ci.pictures pages                    # docs/report.png and docs/audit.png of what ci/demo.sh left

All is seeded: the same machine and versions give the same pictures. ``SETTINGS`` says how the trainings are shortened
(but for that of ``ambissl``); the captions, written with the pictures into the documents, say so too.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import matplotlib
import nibabel as nib
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from common.data.contract.records import SCRIBBLE_UNLABELLED
from common.data.simulation.phantom import LABELS, make_phantom
from common.evaluation.report.cases import draw_caption, pick_slice
from common.evaluation.report.drawing import case_legend, draw_case
from common.evaluation.report.panels import draw_message
from common.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
#: the phantom that each bundle learns from and the case that its picture shows
CASES = {
    "alc": ("noisy", "case_010"),
    "multicure": ("unlabelled", "case_010"),
    "attenscribble": ("scribbles", "case_010"),
    "ambissl": ("raters", "case_025"),
    "affinity_umamba": ("boundary", "case_010"),
}
SETTINGS: dict[str, dict[str, int]] = {
    "alc": {"max_epochs": 10, "passes": 2, "noisy_per_batch": 2, "val_interval": 5},
    "multicure": {"max_epochs": 8, "val_interval": 4},
    "attenscribble": {"max_epochs": 4, "val_interval": 2},
    "ambissl": {"val_interval": 10},
    "affinity_umamba": {"max_epochs": 3},
}
#: what a picture shows, in words for who cannot see it, and below it
CAPTIONS = {
    "alc": (
        "Image, noisy label, answer and truth of a training case",
        "A training case of the phantom: the image, the label as given, the network's answer, and the truth, which no "
        "training saw.",
    ),
    "multicure": (
        "Image without a label, answer and truth of a training case",
        "A training case of the phantom, one of the 16 of 20 without a label: image, answer and truth.",
    ),
    "attenscribble": (
        "Image, scribbles, answer and truth of a training case",
        "A training case of the phantom: the image, the strokes that are all its label, the answer, and the truth.",
    ),
    "ambissl": (
        "Image, masks of five raters, sampled answers and their disagreement",
        "A test case of the phantom: the image, the masks of five raters, answers that the network draws, and where "
        "they disagree.",
    ),
    "affinity_umamba": (
        "Image, label with shifted borders, answer and truth of a training case",
        "A training case of the phantom: the image, a label whose borders are shifted, the answer, and the truth.",
    ),
}
PAGES = """The demo leaves two pages, the report of the evaluation and the audit of the noisy labels:

| report | audit |
|---|---|
| ![Report: losses, validation, reliability, three cases with their largest error, metrics](docs/report.png) \
| ![Audit: the most suspect labels as given, as proposed, and where they are suspect](docs/audit.png) |"""
LARGEST = 100_000  # bytes of a picture
STRUCTURES = {int(value): name for value, name in LABELS.items() if value != "0"}
Volumes = dict[str, NDArray[Any]]


def main(*names: str, ckpt_dir: str | None = None, full: bool = False) -> None:
    """Make pictures.

    Args:
        names: of bundles, or ``pages``.
        ckpt_dir: folder of weights of the one bundle named; without it, it is trained in a folder that is thrown away.
        full: train as the configs say, not shortened.
    """
    if unknown := [name for name in names if name not in (*CASES, "pages")]:
        sys.exit(f"{', '.join(unknown)}: unknown. Fix: name some of {', '.join(CASES)} or pages.")
    for name in names:
        if name == "pages":
            for page in ("test/report.png", "audit/audit.png"):
                print(_smaller(ROOT / "bundles/alc/eval" / page, ROOT / "docs" / Path(page).name))
            _write_block(ROOT / "README.md", PAGES, before="## Train, evaluate, infer")
            continue
        settings = {} if full else SETTINGS[name]
        with tempfile.TemporaryDirectory() as work:
            print(draw(name, _answer(name, Path(work), ckpt_dir, settings)))
        _write_block(ROOT / "bundles" / name / "docs" / "README.md", _caption(name, settings), "## Model overview")


def _caption(name: str, settings: dict[str, int]) -> str:
    """Picture and caption as they stand in the bundle's docs; no settings: the training was not shortened."""
    alt, text = CAPTIONS[name]
    config = yaml.safe_load((ROOT / "bundles" / name / "configs" / "train.yaml").read_text())
    told = {key: value for key, value in settings.items() if key != "val_interval"}  # which changes no step
    how = ", ".join(f"{key} {value} in the place of {config[key]}" for key, value in told.items())
    how = f"Shortened training ({how}): " if told else ""
    full = "" if settings else " --full"
    return f"![{alt}](example.png)\n\n{text}\n{how}`python -m ci.pictures {name}{full}`."


def _write_block(page: Path, text: str, before: str) -> None:
    """Write a text between the marks that it has in a page; where there are none, before a heading."""
    block = f"<!-- picture -->\n{text}\n<!-- /picture -->\n\n"
    content = re.sub(r"<!-- picture -->\n.*?<!-- /picture -->\n\n", "", page.read_text(), flags=re.DOTALL)
    if f"\n{before}\n" not in content:
        sys.exit(f"{page}: has no heading {before!r}. Fix: put it back.")
    with atomic_path(page) as temporary:
        temporary.write_text(content.replace(f"\n{before}\n", f"\n{block}{before}\n", 1))


def _answer(name: str, work: Path, ckpt_dir: str | None, settings: dict[str, int]) -> Volumes:
    """Train if need be, segment the case, and read all that belongs to it."""
    kind, case = CASES[name]
    phantom = make_phantom(work / "phantom", kind)
    weights = work / "models" if ckpt_dir is None else Path(ckpt_dir).resolve()
    if ckpt_dir is None:
        given = [word for key, value in settings.items() for word in (f"--{key}", value)]
        _run(name, "training", "train", "--ckpt_dir", weights, "--output_dir", work / "eval", *given)
    image = phantom / "images" / f"{case}.nii.gz"
    _run(name, "inferring", "inference", "--ckpt_dir", weights, "--output_dir", work / "out", "--dataset_dir", image)
    content = json.loads((phantom / "dataset.json").read_text())
    (record,) = (
        record
        for section in ("training", "test")
        for record in content[section]
        if record["image"].endswith(f"{case}.nii.gz")
    )
    files = {"image": image, "pred": work / "out" / case / f"{case}_pred.nii.gz"}
    files |= {key: phantom / record[key] for key in ("label", "scribble", "reference") if key in record}
    if not {"label", "reference"} & set(files):  # nobody labelled it; the same image has its truth in the dense phantom
        files["reference"] = make_phantom(work / "dense", "dense") / "labels" / f"{case}.nii.gz"
    found = {key: _read(path) for key, path in files.items()}
    found["true"] = found["reference"] if "reference" in found else found["label"]
    if "labels" in record:
        found["raters"] = np.stack([_read(phantom / path) for path in record["labels"]])
        found["samples"] = np.moveaxis(_read(work / "out" / case / f"{case}_samples.nii.gz"), -1, 0)
        found["disagreement"] = _read(work / "out" / case / f"{case}_disagreement.nii.gz")
    return found


def _run(name: str, what: str, config: str, *settings: Any) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", what]
    command += ["--config_file", f"bundles/{name}/configs/{config}.yaml", *map(str, settings)]
    subprocess.run(command, cwd=ROOT, check=True)


def _read(path: Path) -> NDArray[Any]:
    volume: Any = nib.load(path)
    return np.asarray(volume.dataobj)


def draw(name: str, volumes: Volumes) -> Path:
    """Draw a bundle's picture: image, labels, answer, truth.

    Args:
        name: of the bundle.
        volumes: ``image``, ``pred``, ``true`` and what there is of ``label``, ``scribble``, ``raters`` and ``samples``.

    Returns:
        the file written.
    """
    true = volumes["true"]
    index = pick_slice(true, volumes.get("label"), 2, true.shape[2])
    # the phantom's axes run to right, anterior and superior; shown as radiologists do
    cut = {key: np.swapaxes(volume[..., index], -1, -2)[..., ::-1, ::-1] for key, volume in volumes.items()}
    window = tuple(np.percentile(cut["image"], (0.5, 99.8)))
    common: dict[str, Any] = {"labels": STRUCTURES, "window": window}
    figure = Figure(figsize=(8.0, 2.3))
    axes = figure.subplots(1, 4, gridspec_kw={"wspace": 0.03})
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=0.12)
    draw_case(axes[0], cut["image"], {}, **common)
    draw_caption(axes[0], "image")
    _draw_labels(axes[1], cut, common)
    if "samples" in cut:
        _draw_set(axes[2], cut["image"], cut["samples"], common)
        draw_caption(axes[2], f"{len(cut['samples'])} answers, drawn at random")
        disagreement: dict[str, Any] = {"overlay": cut["disagreement"], "overlay_range": (0.0, 1.0)}
        draw_case(axes[3], cut["image"], {}, **disagreement, **common)
        draw_caption(axes[3], "where the answers disagree")
    else:
        draw_case(axes[2], cut["image"], {"prediction": cut["pred"]}, filled=("prediction",), **common)
        draw_caption(axes[2], "answer")
        draw_case(axes[3], cut["image"], {"label": cut["true"]}, filled=("label",), **common)
        draw_caption(axes[3], "truth, which no training saw")
    figure.legend(
        handles=case_legend(STRUCTURES), loc="lower center", ncols=3, frameon=False, fontsize=8, borderaxespad=0.1
    )
    place = ROOT / "bundles" / name / "docs" / "example.png"
    with matplotlib.rc_context({"font.size": 8}):
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_figure(buffer, dpi=110, format="png")
    buffer.seek(0)
    return _save([Image.open(buffer).convert("RGB")], place)


def _draw_labels(ax: Axes, cut: Volumes, common: dict[str, Any]) -> None:
    """What there is to learn from."""
    if "raters" in cut:
        _draw_set(ax, cut["image"], cut["raters"], common)
        draw_caption(ax, f"masks of {len(cut['raters'])} raters")
    elif "scribble" in cut:
        draw_case(ax, cut["image"], {}, **common)
        strokes = cut["scribble"]
        for value, name in {0: "background", **STRUCTURES}.items():
            rows, columns = np.nonzero(strokes == value)
            colour = "white" if value == 0 else case_legend({value: name})[0].get_color()
            ax.plot(columns, rows, "s", color=colour, markersize=2.2, markeredgewidth=0)
        assert (strokes == SCRIBBLE_UNLABELLED).any()
        draw_caption(ax, "scribbles; white: background")
    elif "label" in cut and not np.array_equal(cut["label"], cut["true"]):
        draw_case(ax, cut["image"], {"label": cut["label"]}, filled=("label",), **common)
        draw_caption(ax, "label as given")
    else:
        draw_message(ax, "no label")


def _draw_set(ax: Axes, image: NDArray[Any], masks: NDArray[Any], common: dict[str, Any]) -> None:
    """The outlines of several masks in one picture, thin."""
    draw_case(ax, image, {str(number): mask for number, mask in enumerate(masks)}, line_width=0.6, **common)


def _smaller(page: Path, place: Path) -> Path:
    """A page that a run wrote, small enough for a README."""
    if not page.is_file():
        sys.exit(f"{page}: is not there. Fix: run `bash ci/demo.sh` first.")
    picture = Image.open(page).convert("RGB")
    sizes = [(width, round(picture.height * width / picture.width)) for width in range(800, 499, -50)]
    return _save([picture.resize(size, Image.Resampling.LANCZOS) for size in sizes], place)


def _save(versions: Sequence[Image.Image], place: Path) -> Path:
    """Write the first version of a picture that takes at most ``LARGEST`` bytes, in as many colours as that allows."""
    for picture in versions:
        for colours in (None, 256, 128, 64):
            # the method that keeps rare colours and smooths noise: legends must not differ from pictures
            version = picture if colours is None else picture.quantize(colours, Image.Quantize.MAXCOVERAGE)
            buffer = io.BytesIO()
            version.save(buffer, "png", optimize=True)
            if buffer.tell() <= LARGEST:
                place.parent.mkdir(exist_ok=True)
                with atomic_path(place) as temporary:
                    temporary.write_bytes(buffer.getvalue())
                return place
    sys.exit(f"{place}: takes {buffer.tell()} bytes at the least, at most {LARGEST} are wanted. Fix: make it smaller.")


if __name__ == "__main__":
    fire.Fire(main)
