"""Which study to annotate next."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from .records import FINAL, awaits_label
from .train import studies_of

logger = logging.getLogger(__name__)
RESERVED = 600  # seconds for which a study that one annotator was given is not given to another


class Most(Strategy):
    """The study that awaits a label and has the highest score.

    Args:
        score: name of the scoring method.
        kinds: of records that a batch of its bundle holds.
    """

    def __init__(self, score: str, kinds: Collection[str]) -> None:
        super().__init__(f"the study with the highest score of {score}")
        self.score, self.kinds = score, kinds

    def candidates(self, datastore: Datastore, request: Mapping[str, Any]) -> list[str]:
        """Names of the studies to choose from."""
        return [study.name for study in studies_of(datastore) if awaits_label(study, self.kinds, request)]

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose; studies that nothing has scored come last, in the order of their names.

        Args:
            request: may have what :func:`~lib.records.awaits_label` takes.
            datastore: of the studies.

        Returns:
            ``id`` of the image and its ``score``; None when there is nothing left.
        """
        infos = {name: datastore.get_image_info(name) for name in self.candidates(datastore, request)}
        free = {name: info for name, info in infos.items() if not _reserved(info, request)} or infos
        if not free:
            return None
        scores = {name: info.get(self.score, {}).get("score", -1.0) for name, info in free.items()}
        if all(score < 0 for score in scores.values()):
            logger.warning(f"{self.score}: nothing is scored yet. Fix: POST /scoring/{self.score}.")
        chosen = min(scores, key=lambda name: (-scores[name], name))
        return {"id": chosen, "score": scores[chosen]}


class MostSuspect(Most):
    """The study whose label is the most suspect to the audit: one to correct, not to draw."""

    def candidates(self, datastore: Datastore, request: Mapping[str, Any]) -> list[str]:
        """Studies that were audited and whose label has not been submitted anew since."""
        tag = str(request.get("label_tag") or FINAL)
        found = []
        for study in studies_of(datastore):
            audit = datastore.get_image_info(study.name).get(self.score)
            if not audit:
                continue
            submitted = datastore.get_label_info(study.name, tag).get("ts", 0) if tag in study.labels else 0
            if submitted <= datetime.fromisoformat(audit["date"]).timestamp():
                found.append(study.name)
        return found


def _reserved(info: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    given = info.get("strategy", {}).get(request.get("strategy"), {}).get("ts", 0)
    return bool(time.time() - given < RESERVED)
