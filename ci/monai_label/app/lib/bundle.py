"""What a bundle says of itself: its classes, the kinds of records that it learns from, where its weights are."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

#: Every bundle has a package ``scripts``, and the server forgets one bundle's before it imports another's. Two threads
#: that do so at once take each other's modules away, in the middle of an import.
IMPORTING = threading.RLock()


class Bundle:
    """One exported bundle.

    Args:
        folder: that it lies in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.metadata = json.loads((folder / "configs" / "metadata.json").read_text())
        self.train = self._config("train")
        self.weights = folder / "models" / "model.pt"

    def _config(self, name: str) -> dict[str, Any]:
        content = yaml.safe_load((self.folder / "configs" / f"{name}.yaml").read_text())
        return dict(content)

    @property
    def classes(self) -> dict[int, str]:
        """Names by class number, background first."""
        named = self.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {int(value): name for value, name in sorted(named.items(), key=lambda item: int(item[0]))}

    @property
    def kinds(self) -> dict[str, Any]:
        """Kinds of records that a batch of its training holds, see the data contract, each with its setting."""
        return dict(self.train["train"]["dataloader"]["streams"])

    @property
    def audits(self) -> bool:
        """Whether it looks for suspect labels."""
        return (self.folder / "configs" / "audit.yaml").is_file()

    def default(self, setting: str) -> Any:
        """A setting of its training as the config has it."""
        return self.train[setting]

    def provenance(self, weights: Path | None = None) -> dict[str, str]:
        """What a result comes from: bundle, version, the SHA-256 of the weights, and now.

        Args:
            weights: file of them; default: those that are served.
        """
        return {
            "bundle": self.name,
            "version": str(self.metadata["version"]),
            "weights": weights_hash(weights or self.weights),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def bundles_in(folder: Path) -> dict[str, Bundle]:
    """The bundles in a folder, by name."""
    found = sorted(path.parents[1] for path in folder.glob("*/configs/metadata.json"))
    return {path.name: Bundle(path) for path in found}


def weights_hash(path: Path) -> str:
    """SHA-256 of a file of weights, in hexadecimal digits."""
    return _hash(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _hash(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
