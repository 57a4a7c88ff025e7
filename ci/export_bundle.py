"""Write a stand-alone copy of a bundle, for the MONAI model zoo, MONAI Label or any folder without this repository.

    python ci/export_bundle.py alc --output exported

makes ``exported/alc`` and ``exported/alc_v<version>.zip``:

- the needed part of ``common``, found by following imports, stands in ``scripts/_common`` (MONAI Label tells bundles
  apart by forgetting modules named ``scripts``, so nothing may stand outside that package);
- configs name it by ``scripts._common``, ``bundle_root`` is ``.`` and blocks from other files are written in place;
- the trained weights are in ``models/model.pt``.

What a run was given on top of the configs goes along, so that annotation servers, which read no overlays, find it:

    python ci/export_bundle.py alc --output exported --overlay bundles/alc/configs/la.yaml \\
        --dataset_dir /data/la --weights runs/la/model.pt

writes the overlay's values into the configs, and the classes of the data set's JSON into configs and metadata.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("", ".py", ".yaml", ".yml", ".json", ".conf", ".md", ".txt", ".csv")
IMAGES = (".png", ".jpg", ".svg")  # of the documentation
STAND_ALONE = ("train", "inference")  # configs that hold the settings; others go on top of them
TARGET = "_common"  # package inside `scripts` that holds the copy of `common`
FILE_MACRO = re.compile(r"^%(?P<file>[^:#]+\.(?:ya?ml|json))(?:(?:::|#)(?P<id>.+))?$")
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
MACRO_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>(?:- )*[^\s#][^:]*:|(?:- )*-) +(?P<quote>[\"'])(?P<macro>%.+?)(?P=quote) *(#.*)?$"
)


class ExportError(RuntimeError):
    """The bundle cannot be exported; the message says why and what to do."""


class CommonPackage:
    """The package ``common`` of a repository: which modules there are, and what each needs.

    Args:
        root: folder of the repository.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "common"
        self.names = {path.stem for path in self.folder.iterdir() if path.suffix == ".py" or _is_package(path)}
        # what a text may mean by `common.`: one of these names must follow
        choices = "|".join(sorted(self.names - {"__init__"}))
        self.mention = re.compile(rf"(?<![\w./])common\.(?=(?:{choices})\b)(?P<rest>[\w.]*\w)")
        self.command = re.compile(r"python -m common\.(?P<module>\w+(?:\.\w+)*)")

    def find(self, dotted: str) -> Path:
        """File of the module that a dotted name, ``common.`` left out, begins with."""
        place = self.folder
        for part in filter(None, dotted.split(".")):
            if _is_package(place / part):
                place = place / part
            elif (place / f"{part}.py").is_file():
                return place / f"{part}.py"
            else:
                break
        return place / "__init__.py"

    def closure(self, dotted: Iterable[str]) -> set[Path]:
        """Files of the modules with these names and, over and over, of what they import."""
        waiting = [self.find(name) for name in dotted]
        found: set[Path] = set()
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            found.add(path)
            packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(self.folder)]
            waiting += [*packages, *self._imports(path), *map(self.find, self.commands(path.read_text()))]
        return found

    def mentions(self, text: str) -> set[str]:
        """Dotted names that follow ``common.`` in a text."""
        return {match["rest"] for match in self.mention.finditer(text)}

    def commands(self, text: str) -> set[str]:
        """Modules that a text tells to run by ``python -m common.<module>``."""
        return {f"{match['module']}.__main__" for match in self.command.finditer(text)}

    def _imports(self, path: Path) -> Iterator[Path]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                base = path.parents[node.level - 1].relative_to(self.folder).parts
                module = [*base, *filter(None, (node.module or "").split("."))]
                yield from (self.find(".".join([*module, alias.name])) for alias in node.names)
            elif _imports_absolutely(node, "common"):
                raise ExportError(f"{path}: imports `common` absolutely. Fix: imports inside common are relative.")


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def _imports_absolutely(node: ast.AST, package: str) -> bool:
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module or ""]
    return any(name.split(".")[0] == package for name in names)


def flatten_macros(text: str, root: Path) -> str:
    """Write in place the blocks that a YAML text takes from other files.

    Only whole values can be such blocks (``key: "%bundles/alc/configs/train.yaml::network_def"``). Macros that name an
    id alone stay: they mean the merged config, which only a run knows.

    Args:
        text: content of a YAML file.
        root: folder that the macros' paths are relative to.

    Raises:
        ExportError: a block that itself holds a macro, which MONAI would not expand either.
    """
    lines = []
    for line in text.splitlines():
        match = MACRO_LINE.match(line)
        macro = FILE_MACRO.match(match["macro"]) if match else None
        if match is None or macro is None:
            lines.append(line)
            continue
        block = yaml.safe_load((root / macro["file"]).read_text())
        for part in re.split("::|#", macro["id"]) if macro["id"] else []:
            block = block[int(part) if isinstance(block, list) else part]
        if any(value.startswith("%") for value in _strings(block)):
            raise ExportError(f"{match['macro']}: the block holds a macro itself. Fix: write that part out.")
        lines += _as_lines(match["indent"], match["key"], block)
    return "\n".join(lines) + "\n"


def _as_lines(indent: str, key: str, block: Any) -> list[str]:
    if not isinstance(block, (dict, list)) or not block:
        value = yaml.safe_dump(block, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
        return [f"{indent}{key} {value}"]
    dumped = yaml.safe_dump(block, sort_keys=False, width=110).splitlines()
    deeper = indent + "  " * (1 + key.count("- "))
    return [f"{indent}{key}", *(deeper + line for line in dumped)]


def _strings(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _strings(value)


def set_keys(text: str, values: dict[str, Any]) -> str:
    """Replace top-level keys of a YAML text that has them; its other lines and comments stay.

    Args:
        text: content of a YAML file, top-level keys at the beginnings of lines.
        values: key to value; keys that the text lacks are left out.
    """
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"[^\s#-]", line)] + [len(lines)]
    result = lines[: starts[0]]
    for start, end in itertools.pairwise(starts):
        key = lines[start].partition(":")[0]
        if key in values:
            result += _key_lines(key, values[key])
            # blank lines and comments before the next key are not the value's
            while end > start + 1 and re.match(r"#|$", lines[end - 1]):
                end -= 1
            start = end
            end = next(place for place in starts if place >= end)
        result += lines[start:end]
    return "\n".join(result) + "\n"


def _key_lines(key: str, value: Any) -> list[str]:
    if isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        return [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}"]
    return _as_lines("", f"{key}:", value)


def _read_overlays(paths: Iterable[Path]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in paths:
        overlay = yaml.safe_load(path.read_text()) or {}
        if nested := [key for key in overlay if re.search(r"#|::|^\+", key)]:
            raise ExportError(
                f"{path}: {nested[0]} reaches into a block, which an export cannot write. Fix: leave it out."
            )
        values |= overlay
    return values


def _read_labels(dataset_dir: Path, datalist: str) -> dict[str, str]:
    sys.path.insert(0, str(ROOT))  # not there when this file is run as a script
    from common.data.contract.dataset import load_json
    from common.data.contract.faults import DataError, Fault
    from common.data.contract.records import normalise_labels

    faults: list[Fault] = []
    try:
        labels = normalise_labels(load_json(dataset_dir, datalist).get("labels"), datalist, faults)
        if faults:
            raise DataError(faults)
    except DataError as error:
        raise ExportError(str(error)) from error
    finally:
        sys.path.remove(str(ROOT))
    return {str(value): name for value, name in labels.items()}


class BundleExport:
    """One export: reads from the repository, writes to a folder.

    Args:
        name: name of the bundle.
        root: folder of the repository.
        values: top-level keys of the configs to replace.
        labels: classes, value to name, for configs and metadata; None: those of the metadata.
    """

    def __init__(
        self,
        name: str,
        root: Path = ROOT,
        values: dict[str, Any] | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.source = root / "bundles" / name
        self.common = CommonPackage(root)
        if not (self.source / "configs" / "metadata.json").is_file():
            known = sorted(path.parents[1].name for path in root.glob("bundles/*/configs/metadata.json"))
            raise ExportError(f"no bundle named {name!r}. Fix: use one of {', '.join(known)}.")
        self.metadata = json.loads((self.source / "configs" / "metadata.json").read_text())
        self.version = self.metadata["version"]
        self.values = dict(values or {})
        self.labels = labels
        self._settle_classes()
        self.modules: set[Path] = set()

    def _settle_classes(self) -> None:
        """Let number and names of the classes agree, in configs and metadata."""
        if self.labels is not None:
            if self.values.setdefault("num_classes", len(self.labels)) != len(self.labels):
                raise ExportError(
                    f"num_classes is {self.values['num_classes']} in the overlay, the data set has {len(self.labels)}: "
                    f"{self.labels}. Fix: give the overlay and the data set that the weights were trained with."
                )
            output = self.metadata["network_data_format"]["outputs"]["pred"]
            output |= {"num_channels": len(self.labels), "channel_def": self.labels}
        elif "num_classes" in self.values:
            raise ExportError("the overlay sets num_classes. Fix: --dataset_dir DIR, whose JSON names the classes.")
        if "in_channels" in self.values:
            channels = int(self.values["in_channels"])
            image = self.metadata["network_data_format"]["inputs"]["image"]
            image |= {"num_channels": channels, "channel_def": {str(i): f"image {i}" for i in range(channels)}}

    def write(self, target: Path, weights: Path | None) -> None:
        """Write the stand-alone bundle to an empty folder."""
        texts = {path: path.read_text() for path in self._files()}
        names = set().union(*(self._needs(path, text) for path, text in texts.items()))
        self.modules = self.common.closure(names)
        for path, text in texts.items():
            _write(target / path.relative_to(self.source), self._rewrite(path, text))
        for path in self.modules:
            _write(target / "scripts" / TARGET / path.relative_to(self.common.folder), self._rename(path.read_text()))
        for path in self._files(IMAGES):
            _copy(path, target / path.relative_to(self.source))
        if weights is not None:
            _copy(weights, target / "models" / "model.pt")

    def _files(self, endings: tuple[str, ...] = TEXTS) -> list[Path]:
        patterns = ("LICENSE", "configs/*", "docs/**/*", "scripts/**/*.py")
        files = [path for pattern in patterns for path in sorted(self.source.glob(pattern)) if path.is_file()]
        return [path for path in files if path.suffix in endings]

    def _needs(self, path: Path, text: str) -> set[str]:
        commands = self.common.commands(text)
        if path.suffix == ".py":
            return commands | set(_names_from_common(path, text))
        if path.suffix in (".yaml", ".yml", ".json"):
            return commands | self.common.mentions(text if path.suffix == ".json" else self._settled(path, text))
        return commands

    def _rewrite(self, path: Path, text: str) -> str:
        if path.suffix == ".py":
            dots = "." * len(path.relative_to(self.source / "scripts").parts)
            text = re.sub(r"(?m)^(\s*)from common(?=[.\s])(\.?)", rf"\1from {dots}{TARGET}\2", text)
            return self._rename(text)
        if path.suffix in (".yaml", ".yml"):
            return self._rewrite_config(path, text)
        if path.name == "metadata.json" and self.values:
            text = json.dumps(self.metadata, indent=4) + "\n"
        if path.suffix == ".md":
            text = re.sub(r"\[(?P<text>[^\]]*)\]\((?P<link>(?:\.\./)+[^)]*)\)", lambda m: self._relink(path, m), text)
        return self._rename(self._localise(text))

    def _settled(self, path: Path, text: str) -> str:
        """A config with blocks of other files in place and, where it holds the settings, the export's values."""
        flat = flatten_macros(text, self.root)
        if path.stem not in STAND_ALONE:
            return flat
        flat = set_keys(flat, self.values)
        if path.stem == "train":  # what an overlay adds, such as another method's arguments
            known = set().union(*(yaml.safe_load((path.parent / f"{name}.yaml").read_text()) for name in STAND_ALONE))
            added = [line for key in self.values if key not in known for line in _key_lines(key, self.values[key])]
            flat += "".join(f"{line}\n" for line in added)
        return flat

    def _rewrite_config(self, path: Path, text: str) -> str:
        flat = self._settled(path, text)
        result = self._rename(self._localise(flat))
        config = yaml.safe_load(result) or {}
        imports = [line for line in config.get("imports", []) if re.search(r"\b(scripts|common)\b", line)]
        if imports:
            raise ExportError(
                f"{path}: {imports[0]} runs before the bundle's folder is on the path. "
                "Fix: name the object by _target_, as scripts.<module>.<name>."
            )
        if left := [value for value in _strings(config) if FILE_MACRO.match(value)]:
            raise ExportError(
                f"{path}: {left[0]} cannot be written in place. Fix: let it be the whole of a key's value."
            )
        return result

    def _localise(self, text: str) -> str:
        """Paths from the repository's root become paths from the bundle's."""
        text = re.sub(rf"(?m)^bundle_root: .*bundles/{self.name}\b[\"']?", "bundle_root: .", text)
        return text.replace(f"bundles/{self.name}/", "")

    def _rename(self, text: str) -> str:
        return self.common.mention.sub(rf"scripts.{TARGET}.\g<rest>", text)

    def _relink(self, path: Path, match: re.Match[str]) -> str:
        """Links to files that go along stay links; others become plain text."""
        linked, _, anchor = match["link"].partition("#")
        file = (path.parent / linked).resolve()
        if file.is_relative_to(self.source):
            return match[0]
        if file not in self.modules:
            return match["text"]
        moved = self.source / "scripts" / TARGET / file.relative_to(self.common.folder)
        return f"[{match['text']}]({os.path.relpath(moved, path.parent)}{'#' + anchor if anchor else ''})"


def _names_from_common(path: Path, text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and _imports_absolutely(node, "common"):
            raise ExportError(f"{path}: `import common...`. Fix: write `from common.x import y`.")
        if isinstance(node, ast.ImportFrom) and _imports_absolutely(node, "common"):
            module = (node.module or "").removeprefix("common").removeprefix(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _try_weights(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TRY_WEIGHTS], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ExportError(
            f"the weights do not go into the network of inference.yaml ({said[-1].strip() if said else 'no reason'}). "
            "Fix: give the overlay and the data set that they were trained with, by --overlay and --dataset_dir."
        )


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
        root: folder of the repository.

    Returns:
        the folder and the zip.

    Raises:
        ExportError: says what is wrong and what to do.
    """
    labels = None if dataset_dir is None else _read_labels(dataset_dir, datalist)
    export = BundleExport(name, root, _read_overlays(overlay), labels)
    folder, archive = output / name, output / f"{name}_v{export.version}.zip"
    if there := [str(path) for path in (folder, archive) if path.exists() and not overwrite]:
        raise ExportError(f"{there[0]} is there already. Fix: give --overwrite or another --output.")
    shipped = _find_weights(export.source, weights, without_weights)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=output) as working:
        fresh, packed = Path(working) / name, Path(working) / archive.name
        export.write(fresh, shipped)
        if shipped is not None:
            _try_weights(fresh)
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
    arguments = parser.parse_args()
    try:
        folder, archive = export_bundle(**vars(arguments))
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}\n{archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
