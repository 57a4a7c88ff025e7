"""One export: files read from the repository, rewritten so that they stand alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from . import zoo
from .configs import key_lines, prepend, set_keys, strings
from .package import ROOT, CommonPackage, ExportError, names_from_common

TEXTS = ("", ".py", ".yaml", ".yml", ".json", ".conf", ".md", ".txt", ".csv")
IMAGES = (".png", ".jpg", ".svg")  # of the documentation
STAND_ALONE = ("train", "inference")  # configs that hold the settings; others go on top of them
CALIBRATION_FILE = "calibration.json"  # beside weights, what `calibrating` found for them
SIZING = ("network_def", "strides")  # keys that decide what spatial sizes the network takes
TARGET = "_common"  # package inside `scripts` that holds the copy of `common`


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
            structures = ", ".join(name for value, name in self.labels.items() if value != "0")
            self.metadata["name"] = f"{structures} segmentation ({self.metadata['name']})"
            # in the files that inference writes
            self.values.setdefault("structures", [self.labels[value] for value in sorted(self.labels, key=int)[1:]])
        elif "num_classes" in self.values:
            raise ExportError("the overlay sets num_classes. Fix: --dataset_dir DIR, whose JSON names the classes.")
        if "in_channels" in self.values:
            channels = int(self.values["in_channels"])
            image = self.metadata["network_data_format"]["inputs"]["image"]
            image |= {"num_channels": channels, "channel_def": {str(i): f"image {i}" for i in range(channels)}}

    @property
    def settles_sizes(self) -> bool:
        """Whether the network may take other spatial sizes than the bundle's metadata say."""
        return any(key in self.values for key in SIZING)

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
        _copy(Path(__file__).with_name("examples") / "segment.py", target / "examples" / "segment.py")
        if self.name in zoo.TENSORRT:
            _write(target / "configs" / "inference_trt.yaml", zoo.tensorrt_overlay(self.metadata))
        zoo.write_twins(target)
        zoo.tidy(target)
        if weights is not None:
            _copy(weights, target / "models" / "model.pt")
            if (calibration := weights.parent / CALIBRATION_FILE).is_file() and _is_of(calibration, weights):
                _copy(calibration, target / "models" / CALIBRATION_FILE)

    def _files(self, endings: tuple[str, ...] = TEXTS) -> list[Path]:
        patterns = ("LICENSE", "configs/*", "docs/**/*", "scripts/**/*.py")
        files = [path for pattern in patterns for path in sorted(self.source.glob(pattern)) if path.is_file()]
        return [path for path in files if path.suffix in endings]

    def _needs(self, path: Path, text: str) -> set[str]:
        commands = self.common.commands(text)
        if path.suffix == ".py":
            return commands | set(names_from_common(path, text))
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
            if path.name == "README.md":
                text = zoo.with_sections(text, self.metadata)
        if path.suffix in (".md", ".txt"):
            text = zoo.localised(text)
        return self._rename(self._localise(text))

    def _settled(self, path: Path, text: str) -> str:
        """A config, with the export's values where it holds the settings."""
        if path.stem not in STAND_ALONE:
            return text
        text = set_keys(text, self.values)
        if path.stem == "train":  # what an overlay adds, such as another method's arguments
            known = set().union(*(yaml.safe_load((path.parent / f"{name}.yaml").read_text()) for name in STAND_ALONE))
            added = [line for key in self.values if key not in known for line in key_lines(key, self.values[key])]
            text += "".join(f"{line}\n" for line in added)
        else:  # what the overlay's other values refer to, such as another network's dropout
            waiting = [key for key in self.values if not re.search(rf"(?m)^{re.escape(key)}:", text)]
            while referred := [key for key in waiting if re.search(rf"@{re.escape(key)}\b", text)]:
                text += "".join(f"{line}\n" for key in referred for line in key_lines(key, self.values[key]))
                waiting = [key for key in waiting if key not in referred]
        return text

    def _rewrite_config(self, path: Path, text: str) -> str:
        result = self._rename(self._localise(self._settled(path, text)))
        config = yaml.safe_load(result) or {}
        imports = [line for line in config.get("imports", []) if re.search(r"\b(scripts|common)\b", line)]
        if imports:
            raise ExportError(
                f"{path}: {imports[0]} runs before the bundle's folder is on the path. "
                "Fix: name the object by _target_, as scripts.<module>.<name>."
            )
        if macros := [value for value in strings(config) if re.match(r"%.+\.(?:ya?ml|json)\b", value)]:
            raise ExportError(f"{path}: {macros[0]} takes a block from another file. Fix: write it out.")
        if path.stem in STAND_ALONE:  # the bundle is found from any folder, and its `scripts` are imported at once
            result = set_keys(result, {"bundle_root": zoo.BUNDLE_ROOT})
            result = prepend(result, "initialize", [zoo.FIND_SCRIPTS])
        if path.stem in STAND_ALONE or "imports" in config:  # an overlay's list takes the place of the other
            result = prepend(result, "imports", zoo.NEEDED)
        return result

    def _localise(self, text: str) -> str:
        """Paths from the repository's root become paths from the bundle's."""
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


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _is_of(calibration: Path, weights: Path) -> bool:
    """Whether the temperature was fitted to these weights."""
    try:
        digest: str = json.loads(calibration.read_text())["weights"]
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{calibration}: is no file that calibrating wrote. Fix: remove it.") from None
    return digest == hashlib.sha256(weights.read_bytes()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
