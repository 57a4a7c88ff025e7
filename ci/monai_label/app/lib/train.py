"""Training with all that the server knows: labels to trust or not, images without one, several raters, strokes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.tasks.train.bundle import BundleTrainTask

from .bundle import Bundle
from .records import FINAL, ORIGINAL, STROKES, Study, Tags, count_kinds, make_records, refuse_if_hopeless, split_records

logger = logging.getLogger(__name__)
#: settings of a bundle that a request may change
SETTINGS = ("precision", "learning_rate", "epoch_length", "seed")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class BundleTrain(BundleTrainTask):
    """Train a bundle.

    Args:
        bundle: exported.
        conf: of the app.
    """

    def __init__(self, bundle: Bundle, conf: dict[str, str]) -> None:
        self.bundle = bundle
        self._request: dict[str, Any] = {}
        super().__init__(str(bundle.folder), conf)

    def config(self) -> dict[str, Any]:
        """Options of a training, each with its default, or a list of choices of which the first is."""
        default = self.bundle.default
        chosen = default("precision")
        options = {
            **super().config(),
            "max_epochs": default("max_epochs"),
            "epoch_length": default("epoch_length"),  # steps of an epoch
            "learning_rate": default("learning_rate"),
            "precision": [chosen, *(name for name in PRECISIONS if name != chosen)],
            "seed": default("seed"),
            "val_split": 0.2,  # share of the studies with a label to trust; 0 or less: none validate
            "clean_tags": FINAL,
            "labels_only": False,  # as MONAI Label's own trainer: studies with a trusted label, and nothing else
        }
        kinds = self.bundle.kinds
        options |= {"noisy_tags": ORIGINAL} if "noisy" in kinds else {}
        options |= {"rater_tags": ""} if "raters" in kinds else {}
        return options | ({"stroke_tags": STROKES} if "scribble" in kinds else {})

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; the new weights are served as soon as they are written."""
        # a client sends what it likes to, 3D Slicer an empty run id
        given = {key: value for key, value in request.items() if value not in (None, "")}
        firsts = {key: value[0] if isinstance(value, list) and value else value for key, value in self.config().items()}
        self._request = firsts | {"run_id": "run", "val_split": firsts["val_split"]} | given
        super().__call__(self._request, datastore)
        return {"provenance": self.bundle.provenance()}

    def _fetch_datalist(self, request: Mapping[str, Any], datastore: Datastore) -> list[dict[str, Any]]:
        kinds = {"label"} if request["labels_only"] else set(self.bundle.kinds)
        tags = Tags.from_request(request)
        records = make_records(studies_of(datastore), kinds, tags)
        refuse_if_hopeless(records, kinds, tags)
        return records

    def _partition_datalist(
        self, datalist: list[dict[str, Any]], request: Mapping[str, Any], shuffle: bool = False
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        training, validation = split_records(datalist, float(request["val_split"]))
        for name, records in (("train with", training), ("validate with", validation)):
            counts = ", ".join(f"{count} {kind}" for kind, count in count_kinds(records).items())
            logger.info(f"{self.bundle.name}: records to {name}: {counts or 'none'}")
        return training, validation

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[Any]) -> None:
        # one of an earlier request stays in the config
        train_handlers[:] = [handler for handler in train_handlers if handler.get("_target_") != "CheckpointLoader"]
        if pretrained:
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides |= {name: self._request[name] for name in SETTINGS}
        return overrides


def studies_of(datastore: Datastore) -> list[Study]:
    """All images of a datastore with the paths of the labels that are there."""
    studies = []
    for name in sorted(datastore.list_images()):
        tags = datastore.get_labels_by_image_id(name)
        paths = {tag: datastore.get_label_uri(label, tag) for tag, label in tags.items()}
        # one that was removed a moment ago may still be listed
        labels = {tag: path for tag, path in paths.items() if Path(path).is_file()}
        studies.append(Study(name, datastore.get_image_uri(name), labels))
    return studies
