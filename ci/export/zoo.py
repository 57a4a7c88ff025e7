"""What the MONAI model zoo asks of a bundle beyond its own files: sections of its README, large files, TensorRT."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LARGEST = 25 * 10**6  # bytes of a file in the zoo's repository
WORKFLOWS = ("train", "inference")  # configs that `monai.bundle.load` reads, as JSON alone
TENSORRT = ("alc", "attenscribble")  # networks of convolutions and attention; others loop or gather
#: the folder of the config that a workflow runs, so that a bundle works from any folder; "." where no workflow runs
BUNDLE_ROOT = (
    "$next((str(call.frame.f_locals['self'].config_root_path.resolve().parent) for call in inspect.stack(0)"
    " if 'config_root_path' in getattr(call.frame.f_locals.get('self'), '__dict__', {})), '.')"
)
FIND_SCRIPTS = "$sys.path.insert(1, @bundle_root)"
NEEDED = ("$import inspect", "$import sys")  # by these two
_PLACES = (  # what the documentation says of the repository, and what of an export
    (r"At the repository root:", "In the bundle's folder:"),
    (r"(?<![\w/])common/(?=\w+/|\w+\.py)", "scripts/_common/"),
    (r"`bash ci/(\w+)\.sh`", r"the collection's \1"),
    (r"`python -m ci\.benchmarks\.(\w+)[^`]*`", r"the collection's benchmark \1"),
    (r"`python (?:-m )?ci[/.][^`]*`", "the collection's export"),
    (r"`tests/[^`]*`", "a test of the collection"),
)
_TRT = """# Inference with a TensorRT engine. Overlay on inference.yaml. UNTESTED: no CUDA device was at hand.
# python -m monai.bundle trt_export network_def --filepath models/model_trt.ts --ckpt_file models/model.pt \\
#   --meta_file configs/metadata.json --config_file configs/inference.yaml --precision fp16 \\
#   --input_shape "{shape}" --dynamic_batchsize "[1, 4, 8]"
# python -m monai.bundle run inferring --config_file "['configs/inference.yaml','configs/inference_trt.yaml']"

imports:
- $import inspect
- $import sys
- $import torch
- $import torch_tensorrt

network_def: $torch.jit.load(@bundle_root + '/models/model_trt.ts')
network: $@network_def.to(@device)
"""


def localised(text: str) -> str:
    """A document that speaks of the export's folders, and of no others."""
    for pattern, instead in _PLACES:
        text = re.sub(pattern, instead, text)
    return text


def with_sections(text: str, metadata: Mapping[str, Any]) -> str:
    """A README with the sections of the zoo's template that it lacks, from the metadata.

    Args:
        text: begins with its title.
        metadata: of the bundle.
    """
    title, _, body = text.partition("\n")
    body = body.replace("\n## Model overview\n", "\n## Model Description\n", 1)
    head = [title, "### **Authors**", metadata["authors"], "### **Tags**", ", ".join(tags(metadata))]
    packages = ", ".join(f"{name} {version}" for name, version in metadata["required_packages_version"].items())
    references = metadata.get("references", [])
    tail = {
        "Export": "`monai.bundle.load`, `create_workflow` and `python -m monai.bundle run` find this bundle from any "
        "folder; one bundle a process, for every bundle calls its package `scripts`. `models/` may hold the network "
        "as `model.ts` (TorchScript), `model.onnx` and `model.pt2` (`torch.export`): `image` to `pred`, the logits, at "
        "any batch size and any spatial size that the metadata allow (`model.pt2`: at least twice its unit an axis).",
        "System Configuration": f"Python 3.10 to 3.13 with PyTorch {metadata['pytorch_version']}, MONAI "
        f"{metadata['monai_version']}, NumPy {metadata['numpy_version']}, {packages}. It has run on CPUs alone, with "
        "one core and more; what is said of CUDA is untested. The phantom takes minutes on two cores.",
        "Citation Info": "\n".join(["Cite the method:", "", *(f"> {item}" for item in references[:1])]),
        "References": "\n".join(f"[{number}] {item}" for number, item in enumerate(references, 1)),
    }
    sections = [f"## {name}\n\n{content}" for name, content in tail.items() if content]
    return "\n\n".join([*head, body.strip(), *sections]) + "\n"


def tags(metadata: Mapping[str, Any]) -> list[str]:
    """Words to find the bundle by."""
    image = metadata["network_data_format"]["inputs"]["image"]
    return ["Segmentation", f"{len(image['spatial_shape'])}D", image["modality"], metadata["name"]]


def tensorrt_overlay(metadata: Mapping[str, Any]) -> str:
    """Text of ``inference_trt.yaml``."""
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = [4, image["num_channels"], *(32 for _ in image["spatial_shape"])]
    return _TRT.format(shape=shape)


def write_twins(folder: Path) -> None:
    """JSON twins of the configs that ``monai.bundle.load`` reads: it knows no YAML."""
    from monai.bundle import ConfigParser

    for name in WORKFLOWS:
        path = folder / "configs" / f"{name}.yaml"
        if path.is_file():
            content = ConfigParser.load_config_file(path)
            path.with_suffix(".json").write_text(json.dumps(content, indent=4) + "\n")


def tidy(folder: Path) -> None:
    """Sort imports and fold lines as the zoo's isort and black do: renaming has made some too long. Needs ruff."""
    if find_spec("ruff") is None:  # of requirements.txt; an environment that only serves bundles has none
        return
    style = ["--isolated", "--quiet", "--line-length", "120"]
    fold = ["format", *style, "--config", "format.skip-magic-trailing-comma = true"]
    sort = ["check", *style, "--select", "I", "--fix", "--config", "lint.isort.split-on-trailing-comma = false"]
    for arguments in (sort, fold):
        subprocess.run([sys.executable, "-m", "ruff", *arguments, str(folder)], check=True)


def write_large_files(folder: Path, url: str | None) -> list[str]:
    """``large_files.yml`` of a bundle's files that the zoo's repository does not take, if there are any.

    Args:
        folder: of the bundle.
        url: folder in the web where they will be; None: to be filled in.

    Returns:
        their paths in the bundle.
    """
    large = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > LARGEST]
    lines = ["large_files:"]
    for path in large:
        where = "" if url is None else f"{url.rstrip('/')}/{path.name}"
        lines += [
            f'  - path: "{path.relative_to(folder).as_posix()}"',
            f'    url: "{where}"' + (" # fill in: where this file can be downloaded" if url is None else ""),
            f'    hash_val: "{hashlib.sha256(path.read_bytes()).hexdigest()}"',
            '    hash_type: "sha256"',
        ]
    if large:
        (folder / "large_files.yml").write_text("\n".join(lines) + "\n")
    return [path.relative_to(folder).as_posix() for path in large]
