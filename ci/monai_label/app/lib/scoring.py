"""Scores of the studies, by which the strategies ask for the next one, and the audit of their labels."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.utils.others.generic import name_to_device

from .bundle import Bundle
from .infer import BundleInfer
from .records import ORIGINAL, PROPOSAL, Study, Tags, awaits_label, make_records
from .train import studies_of

logger = logging.getLogger(__name__)


class Score(ScoringMethod):
    """A number for each study that awaits a label, kept in the image's info under ``<bundle>_<name>``.

    Args:
        bundle: whose network scores.
        name: of the score.
        description: of it.
    """

    def __init__(self, bundle: Bundle, name: str, description: str) -> None:
        super().__init__(description)
        self.bundle, self.key = bundle, f"{bundle.name}_{name}"

    def measure(self, images: Sequence[Study], request: Mapping[str, Any]) -> list[float]:
        """The scores of some studies."""
        raise NotImplementedError

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score all that these weights have not scored yet.

        Args:
            request: may have ``max_samples``, how many studies to score at most, and what
                :func:`~lib.records.awaits_label` takes.
            datastore: of the studies.

        Returns:
            the scores that are new, by image.
        """
        came_from = self.bundle.provenance()
        waiting = [
            study
            for study in studies_of(datastore)
            if awaits_label(study, self.bundle.kinds, request)
            and not _scored_by(datastore, study.name, self.key, came_from["weights"])
        ][: int(request.get("max_samples", 0)) or None]
        scores = dict(zip((study.name for study in waiting), self.measure(waiting, request), strict=True))
        _keep(datastore, {name: {self.key: {"score": score, **came_from}} for name, score in scores.items()})
        logger.info(f"{self.key}: {len(scores)} studies scored")
        return scores


class Entropy(Score):
    """Epistemic entropy, by dropout at inference, see :func:`~lib.scores.epistemic_entropy`.

    Args:
        bundle: whose network scores.
        infer: task that has it.
    """

    def __init__(self, bundle: Bundle, infer: BundleInfer) -> None:
        super().__init__(bundle, "entropy", "epistemic entropy by dropout at inference, 0 to 1")
        self.infer = infer

    def measure(self, images: Sequence[Study], request: Mapping[str, Any]) -> list[float]:
        """The scores; the request may have ``passes`` (5) and ``dropout`` (0.2)."""
        device = name_to_device(request.get("device", "cuda"))
        passes = max(2, int(request.get("passes", 5)))
        if not images:
            return []
        network = self.infer.dropping(float(request.get("dropout", 0.2)), device)
        return [self.infer.epistemic_entropy(study.image, network, device, passes) for study in images]


class Disagreement(Score):
    """How far a bundle's networks, or its samples, are apart.

    Args:
        bundle: whose network scores.
        infer: task that has it.
    """

    def __init__(self, bundle: Bundle, infer: BundleInfer) -> None:
        super().__init__(bundle, "disagreement", "disagreement between networks or samples, 0 to 1")
        self.infer = infer

    def measure(self, images: Sequence[Study], request: Mapping[str, Any]) -> list[float]:
        """The scores."""
        return [self.infer.mean_disagreement(study.image) for study in images]


class Audit(ScoringMethod):
    """Rank the studies' labels by how suspect they are to the network, and propose better ones.

    A proposal becomes a label of its own, under the tag ``proposal``: no other label is ever written. It comes from the
    bundle's own audit, in a process of its own. Score, rank and what they came from are kept in the image's info under
    ``<bundle>_audit``, and with each proposal.

    Args:
        bundle: with an audit.yaml.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__("ranking of the labels by how suspect they are, and proposals beside them")
        self.bundle, self.key = bundle, f"{bundle.name}_audit"

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Audit the labels that a training would take.

        Args:
            request: may have ``proposals`` (true), ``confidence`` (0.5) and the tags of the training.
            datastore: of the studies.

        Returns:
            ``ranking``, the most suspect first, each with ``image``, ``tag``, ``score`` and ``structures``, and what it
            came from.
        """
        studies = {study.name: study for study in studies_of(datastore)}
        tags = Tags.from_request({"noisy_tags": ORIGINAL, **request})
        records = {
            name: made[0]
            for name, study in studies.items()
            if (made := make_records([study], {"clean", "noisy"}, tags))
        }
        came_from = self.bundle.provenance()
        if not records:
            return {"ranking": [], **came_from}
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            found = self._run(records, Path(folder), float(request.get("confidence", 0.5)))
            ranking = [{"tag": _tag_of(studies[row["image"]], records[row["image"]]), **row} for row in found]
            _keep(datastore, {row["image"]: {self.key: {**row, **came_from}} for row in ranking})
            if request.get("proposals", True):
                for row in ranking:
                    proposed = Path(folder) / row["image"] / f"{row['image']}_proposed.nii.gz"
                    datastore.save_label(row["image"], str(proposed), PROPOSAL, {"audit": row, **came_from})
        logger.info(f"{self.key}: {len(ranking)} labels ranked, {ranking[0]['image']} is the most suspect")
        return {"ranking": ranking, **came_from}

    def _run(self, records: Mapping[str, dict[str, Any]], folder: Path, confidence: float) -> list[dict[str, Any]]:
        """The bundle's audit of these records: score, rank and structures a case."""
        configs = self.bundle.folder / "configs"
        arguments = {
            "config_file": [str(configs / "train.yaml"), str(configs / "audit.yaml")],
            "bundle_root": str(self.bundle.folder),
            "quality": "all",
            "confidence": confidence,
            "audit#records": list(records.values()),
            "audit#structures": {str(value): name for value, name in self.bundle.classes.items()},
            "audit#output_dir": str(folder),
        }
        file = folder / "arguments.json"
        file.write_text(json.dumps(arguments))
        command = [sys.executable, "-m", "monai.bundle", "run", "auditing", "--args_file", str(file)]
        done = subprocess.run(command, cwd=self.bundle.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{self.key}: the audit failed:\n{done.stderr[-3000:]}")
        found: dict[str, dict[str, Any]] = {}
        with (folder / "audit.csv").open(newline="") as table:
            for row in csv.DictReader(table):
                case: dict[str, Any] = {
                    "image": row["case"],
                    "score": float(row["score"]),
                    "rank": int(row["rank"]),
                    "structures": {},
                }
                structures = found.setdefault(row["case"], case)["structures"]
                structures[row["structure"]] = {"score": float(row["structure_score"]), "verdict": row["verdict"]}
        return sorted(found.values(), key=lambda case: case["rank"])


def _tag_of(study: Study, record: Mapping[str, Any]) -> str:
    return next(tag for tag, path in study.labels.items() if path == record["label"])


def _scored_by(datastore: Datastore, image: str, key: str, weights: str) -> bool:
    return datastore.get_image_info(image).get(key, {}).get("weights") == weights


def _keep(datastore: Datastore, infos: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep scores in the images' infos, on top of what others have written there meanwhile."""
    if hasattr(datastore, "refresh"):
        datastore.refresh()
    for image, info in infos.items():
        datastore.update_image_info(image, dict(info))
