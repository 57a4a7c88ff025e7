"""From what the server knows of its studies to records of the bundles' data contract.

A study is an image with labels under tags. Which of them a bundle is given follows from the kinds of records that its
batches hold: see :func:`make_records`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

FINAL, ORIGINAL, PROPOSAL = "final", "original", "proposal"
STROKES = "strokes"
SCRIBBLE_UNLABELLED = 255  # in scribbles of the data contract
#: tags that are no rater's: what networks wrote, and strokes
NO_RATER = (ORIGINAL, PROPOSAL, STROKES)


@dataclass(frozen=True)
class Study:
    """An image and its labels.

    Attributes:
        name: of the image.
        image: path.
        labels: tag to path.
    """

    name: str
    image: str
    labels: Mapping[str, str]

    def under(self, tags: Iterable[str]) -> list[str]:
        """Paths of the labels that it has under some tags, in the order of those."""
        return [self.labels[tag] for tag in tags if tag in self.labels]


@dataclass(frozen=True)
class Tags:
    """Which labels are what.

    Attributes:
        clean: tags of labels to be trusted; of several the first that a study has.
        noisy: tags of labels that may be wrong.
        raters: tags of the labels of several raters, one each; empty: all but those of :data:`NO_RATER`.
        strokes: tags of labels of which only what is drawn is known.
    """

    clean: tuple[str, ...] = (FINAL,)
    noisy: tuple[str, ...] = (ORIGINAL,)
    raters: tuple[str, ...] = ()
    strokes: tuple[str, ...] = (STROKES,)

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> Tags:
        """Tags as a request names them: ``clean_tags``, ``noisy_tags``, ``rater_tags``, ``stroke_tags``, by commas."""
        keys = {"clean": "clean_tags", "noisy": "noisy_tags", "raters": "rater_tags", "strokes": "stroke_tags"}
        given = {name: request[key] for name, key in keys.items() if request.get(key) is not None}
        split = {name: value.split(",") if isinstance(value, str) else value for name, value in given.items()}
        return cls(**{name: tuple(tag.strip() for tag in tags if tag.strip()) for name, tags in split.items()})


def trusted_labels(study: Study, kinds: Collection[str], tags: Tags) -> list[str]:
    """Labels of a study that a bundle learns from and trusts; no file is read.

    Args:
        study: that may have some.
        kinds: of records that a batch of the bundle holds.
        tags: which labels are what.

    Returns:
        paths: of all raters' labels, otherwise of the one that is first; empty: the bundle has none to trust.
    """
    if "raters" in kinds:
        return study.under(tags.raters or sorted(set(study.labels) - set(NO_RATER)))
    return study.under((*tags.strokes, *tags.clean) if "scribble" in kinds else tags.clean)[:1]


def awaits_label(study: Study, kinds: Collection[str], request: Mapping[str, Any]) -> bool:
    """Whether an annotator is to be asked for a study.

    Args:
        study: in question.
        kinds: of records that a batch of the bundle holds.
        request: may have the tags of the training, and ``label_tag``: whoever labels under it is asked for what has no
            label there, whatever others have labelled.

    Example:
        >>> anna = Study("a", "a.nii", {"anna": "anna/a.nii"})
        >>> [awaits_label(anna, {"raters"}, request) for request in ({}, {"label_tag": "bert"}, {"label_tag": "anna"})]
        [False, True, False]
        >>> awaits_label(anna, {"label"}, {})
        True
    """
    if tag := request.get("label_tag"):
        return tag not in study.labels
    # an empty option of a client is none
    given = {name: value for name, value in request.items() if value}
    return not trusted_labels(study, kinds, Tags.from_request(given))


def make_records(studies: Iterable[Study], kinds: Collection[str], tags: Tags) -> list[dict[str, Any]]:
    """The records that a bundle can use.

    ============ ===================================================================================================
    ``raters``   the labels under all raters' tags, as ``labels``
    ``scribble`` the strokes; of a study without any, its trusted label
    ``label``    the trusted label
    ``clean``    the trusted label
    ``noisy``    of a study without a trusted label, the first that may be wrong, as ``label_quality: noisy``
    ``unlabelled`` the images of the other studies
    ============ ===================================================================================================

    Args:
        studies: what there is.
        kinds: of records that a batch of the bundle holds.
        tags: which labels are what.

    Returns:
        records, in the order of the studies.

    Example:
        >>> studies = [Study("a", "a.nii", {"final": "f/a.nii"}), Study("b", "b.nii", {"original": "o/b.nii"})]
        >>> [record.get("label_quality") for record in make_records(studies, {"clean", "noisy"}, Tags())]
        ['clean', 'noisy']
        >>> [sorted(record) for record in make_records(studies, {"label", "unlabelled"}, Tags())]
        [['image', 'label', 'label_quality'], ['image']]
    """
    made = (_record(study, kinds, tags) for study in studies)
    return [record for record in made if record is not None]


def _record(study: Study, kinds: Collection[str], tags: Tags) -> dict[str, Any] | None:
    record: dict[str, Any] = {"image": study.image}
    if trusted := trusted_labels(study, kinds, tags):
        if "raters" in kinds:
            return record | {"labels": trusted}
        if "scribble" in kinds:
            return record | (_strokes(trusted[0]) if study.under(tags.strokes) else {"label": trusted[0]})
        return record | {"label": trusted[0], "label_quality": "clean"}
    if "noisy" in kinds and (doubtful := study.under(tags.noisy)):
        return record | {"label": doubtful[0], "label_quality": "noisy"}
    return record if "unlabelled" in kinds else None


def _strokes(path: str) -> dict[str, str]:
    """Strokes as an annotator draws them are a ``label`` that tells by itself what it is; a file of the contract's own
    form marks what nobody looked at.
    """
    values = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    return {"scribble" if (values == SCRIBBLE_UNLABELLED).any() else "label": path}


def split_records(records: Sequence[dict[str, Any]], share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Take a share of the records that can be measured against for validation.

    Those are drawn by the images' names, so that a case that has validated once goes on to when others join.

    Args:
        records: of :func:`make_records`.
        share: of those with a label to trust; 0 or less: none.

    Returns:
        records to train with, and to validate with.
    """
    trusted = [record for record in records if _measures(record)]
    count = min(max(1, round(share * len(trusted))), len(trusted) - 1) if share > 0 and len(trusted) > 1 else 0
    chosen = sorted(trusted, key=lambda record: _draw(record["image"]))[:count]
    return [record for record in records if record not in chosen], chosen


def _measures(record: Mapping[str, Any]) -> bool:
    return "labels" in record or ("label" in record and record.get("label_quality") != "noisy")


def _draw(image: str) -> str:
    return hashlib.sha256(Path(image).name.encode()).hexdigest()


def count_kinds(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many records of each kind there are, for people.

    Example:
        >>> count_kinds([{"image": "a"}, {"image": "b", "label": "c", "label_quality": "noisy"}])
        {'noisy': 1, 'unlabelled': 1}
    """
    counts: dict[str, int] = {}
    for record in records:
        if "labels" in record:
            kind = "raters"
        elif "scribble" in record:
            kind = "scribble"
        elif "label" in record:
            kind = str(record.get("label_quality", "label"))
        else:
            kind = "unlabelled"
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items()))


def refuse_if_hopeless(records: Sequence[Mapping[str, Any]], kinds: Collection[str], tags: Tags) -> None:
    """Say what is missing before a training starts.

    Raises:
        ValueError: when no record has anything to learn a class from.
    """
    if any(len(record) > 1 for record in records):
        return
    wanted = {"raters": tags.raters or ("any but " + ", ".join(NO_RATER),), "scribble": (*tags.strokes, *tags.clean)}
    names = next((wanted[kind] for kind in wanted if kind in kinds), tags.clean)
    raise ValueError(
        f"no study has a label to learn from, under the tag {', '.join(names)}. Fix: submit a label, or name your tags."
    )
