"""What is asked of the server about each bundle; every check says what it saw, or raises."""

from __future__ import annotations

import csv
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from common.files import file_digest

from .app.lib.bundle import Bundle
from .app.lib.records import Study, awaits_label
from .server import Server, ServerError

Labels = Mapping[str, Mapping[str, str]]  # study to tag to path
SHORT = {"max_epochs": 1, "epoch_length": 2, "precision": "float32", "seed": 3}  # of a training


def need(right: Any, what: str) -> None:
    """Raise unless something is so."""
    if not right:
        raise ServerError(what)


class BundleChecks:
    """The checks of one bundle.

    Args:
        server: that is up.
        name: of the bundle.
        studies: labels by study, see :func:`~ci.monai_label.studies.make_studies`.
    """

    def __init__(self, server: Server, name: str, studies: Labels) -> None:
        self.server, self.name, self.studies = server, name, studies
        self.folder = server.app / "model" / name
        self.weights = self.folder / "models" / "model.pt"
        self.info = server.need("GET", "/info/").json()
        self.model = self.info["models"][name]
        self.image = next(study for study, labels in studies.items() if not labels)

    def all(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Names and checks, in the order in which they are to be made."""
        yield "two workers at the first call", self.two_workers
        yield "info", self.information
        yield "inference", self.inference
        yield "maps", self.maps
        yield "training by kind", self.training
        yield "no validation split", self.no_validation
        yield "scoring", self.scoring
        yield "audit", self.audit

    def two_workers(self) -> str:
        """Batch inference by two threads, the first thing that the process is asked."""
        request = {"max_workers": 2, "multi_gpu": False, "max_batch_size": 2, "label_tag": "tried", "device": "cpu"}
        self.server.run("batch/infer", f"{self.name}?images=unlabeled", **request)
        tried = self._studies_with("tried")
        for study in tried:
            self.server.need("DELETE", f"/datastore/label?id={study}&tag=tried")
        need(len(tried) == 2, f"{len(tried)} of 2 images were segmented")
        return "2 images segmented"

    def information(self) -> str:
        """Classes, the background stroke where strokes are drawn, and the options of a training."""
        labels, options = self.model["labels"], self.info["trainers"][self.name]["config"]
        need(list(labels.values()) == list(range(1, 1 + len(labels))), f"labels are {labels}")
        takes_strokes = "stroke_tags" in options
        need(("background stroke" in labels) == takes_strokes, f"labels are {labels}")
        missing = {"precision", "learning_rate", "epoch_length", "max_epochs", "val_split"} - set(options)
        need(not missing, f"a training has no option {missing}")
        return ", ".join(labels)

    def inference(self) -> str:
        """A segmentation in the image's space, of the classes."""
        volume = self._volume(self.server.infer(self.name, self.image).body)
        image: Any = nib.load(self.server.studies / f"{self.image}.nii.gz")
        values = np.asarray(volume.dataobj)
        need(values.shape == image.shape and np.allclose(volume.affine, image.affine), "it is in another space")
        need(set(np.unique(values)) <= set(range(4)), f"its values are {np.unique(values)}")
        return f"{values.dtype} {values.shape}"

    def maps(self) -> str:
        """Each map in the image's space, and its mean beside every answer."""
        answer = self.server.infer(self.name, self.image, "json").json()
        wanted = self.model["config"]["map"][1:]
        need(sorted(answer["means"]) == sorted(wanted), f"there are {answer['means']}, and {wanted} offered")
        for name in wanted:
            volume = self._volume(self.server.infer(self.name, self.image, map=name).body)
            values = np.asarray(volume.dataobj)
            need(values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1, f"{name}: {values.dtype}")
            need(abs(values.mean() - answer["means"][name]) < 1e-4, f"{name}: the means differ")
        need(answer["provenance"]["weights"] == file_digest(self.weights), "the answer came from other weights")
        return ", ".join(f"{name} {mean:.3f}" for name, mean in answer["means"].items())

    def training(self) -> str:
        """With all kinds and with labels alone, from the same weights and seed: what the batches held, and that the
        weights differ where there is a kind beside labels; the new ones are served.
        """
        kinds = self.info["trainers"][self.name]["config"]
        with self._as_before():
            mixed, sizes, terms = self._train(val_split=0.34, **SHORT)
            answer = self.server.infer(self.name, self.image, "json").json()
            need(answer["provenance"]["weights"] == file_digest(self.weights), "the new weights are not served")
        with self._as_before():
            alone, _, _ = self._train(val_split=0.34, labels_only=True, **SHORT)
        differ = any(not torch.equal(mixed[name], alone[name]) for name in mixed)
        has_other = bool({"noisy_tags", "rater_tags", "stroke_tags"} & set(kinds)) or len(sizes) > 1
        need(differ == has_other, f"weights of labels alone differ: {differ}; kinds beside labels: {has_other}")
        beside = "differ from" if differ else "equal"
        return f"{sizes} records a batch; losses {', '.join(terms)}; weights {beside} those of labels alone"

    def no_validation(self) -> str:
        """With ``val_split`` -1 nothing validates, least of all a phantom."""
        with self._as_before():
            self._train(val_split=-1, **SHORT)
            names = self._history()
        need(not [name for name in names if name.startswith("validation/")], f"something validated: {names}")
        need(not (self.folder / "data").exists(), "a phantom was made")
        return "none validated, no phantom"

    def scoring(self) -> str:
        """Each score is in [0, 1], and the strategy of its name asks for the highest."""
        said = []
        for method in self.info["scoring"]:
            if not method.startswith(f"{self.name}_") or method.endswith("_audit"):
                continue
            self.server.run("scoring", method, max_samples=2, passes=2)
            scores = {study: info["score"] for study, info in self._kept(method, 2).items()}
            need(len(scores) == 2 and all(0 < score <= 1 for score in scores.values()), f"{method}: {scores}")
            chosen = self.server.need("POST", f"/activelearning/{method}", json_body={}).json()
            need(chosen["id"] == max(scores, key=lambda study: scores[study]), f"{method}: {scores}, chose {chosen}")
            said.append(f"{method.removeprefix(f'{self.name}_')} {max(scores.values()):.2g}")
        return ", ".join(said)

    def audit(self) -> str:
        """A ranking, proposals beside the labels, never over them, each with what it came from."""
        method = f"{self.name}_audit"
        if method not in self.info["scoring"]:
            return "has none"
        before = {path: file_digest(Path(path)) for labels in self.studies.values() for path in labels.values()}
        self.server.run("scoring", method)
        need(before == {path: file_digest(Path(path)) for path in before}, "a label was overwritten")
        audited = [labels for labels in self.studies.values() if {"final", "original"} & set(labels)]
        ranked = self._kept(method, len(audited))
        need(sorted(row["rank"] for row in ranked.values()) == list(range(1, 1 + len(ranked))), f"ranks: {ranked}")
        need(set(ranked) == set(self._studies_with("proposal")), "proposals are missing")
        for study, row in ranked.items():
            info = self.server.need("GET", f"/datastore/label/info?label={study}&tag=proposal").json()
            need({"bundle", "version", "weights", "date"} <= set(info), f"{study}: a proposal of {info}")
            need(info["weights"] == file_digest(self.weights) == row["weights"], "it came from other weights")
        chosen = self.server.need("POST", f"/activelearning/{method}", json_body={}).json()
        need(ranked[chosen["id"]]["rank"] == 1, f"asked for {chosen}")
        for study in ranked:
            self.server.need("DELETE", f"/datastore/label?id={study}&tag=proposal")
        return f"{len(ranked)} labels ranked, the first {chosen['id']} ({chosen['score']:.3f})"

    def _train(self, **request: Any) -> tuple[dict[str, torch.Tensor], list[int], list[str]]:
        self.server.run("train", self.name, device="cpu", multi_gpu=False, **request)
        checkpoint = torch.load(self.folder / "models" / "last.ckpt", map_location="cpu", weights_only=True)
        weights = torch.load(self.folder / "models" / "model_final.pt", map_location="cpu", weights_only=True)
        terms = sorted(name.removeprefix("loss/") for name in self._history() if name.startswith("loss/"))
        return weights, [size for size in checkpoint["cases_per_batch"] if size], terms

    def _history(self) -> set[str]:
        with (self.folder / "eval" / "history.csv").open(newline="") as file:
            return {row["name"] for row in csv.DictReader(file)}

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Put back the weights that are served."""
        with tempfile.TemporaryDirectory() as folder:
            kept = shutil.copy2(self.weights, folder)
            yield
            shutil.copyfile(kept, self.weights)

    def _objects(self) -> dict[str, Any]:
        return dict(self.server.need("GET", "/datastore/?output=all").json()["objects"])

    def _kept(self, method: str, count: int) -> dict[str, dict[str, Any]]:
        """What a scoring has kept, by study; the server sees what another process wrote a moment later."""
        for _ in range(50):
            infos = {study: entry["image"]["info"] for study, entry in self._objects().items()}
            kept = {study: info[method] for study, info in infos.items() if method in info}
            if len(kept) >= count:
                break
            time.sleep(0.2)
        return kept

    def _studies_with(self, tag: str) -> list[str]:
        return sorted(study for study, entry in self._objects().items() if tag in entry["labels"])

    @staticmethod
    def _volume(content: bytes) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
            Path(file.name).write_bytes(content)
            volume: Any = nib.load(file.name)
            np.asarray(volume.dataobj)
            return nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine)


def check_start(server: Server, name: str, studies: Labels) -> str:
    """What the server scores by itself when it starts: every study that awaits a label, and no proposal written.

    Args:
        server: that has just started, and serves this bundle alone.
        name: of the bundle.
        studies: labels by study.

    Returns:
        what was seen.

    Raises:
        ServerError: when a score fails or is missing.
    """
    methods = [method for method in server.need("GET", "/info/").json()["scoring"] if method.startswith(f"{name}_")]
    tasks = server.wait_for_all("scoring", len(methods))
    failed = [task for task in tasks if task["status"] != "DONE"]
    need(not failed, f"scoring at start: {failed}")
    objects = server.need("GET", "/datastore/?output=all").json()["objects"]
    kinds = Bundle(server.app / "model" / name).kinds
    bare = {study for study, labels in studies.items() if awaits_label(Study(study, "", labels), kinds, {})}
    for method in methods:
        scored = {study for study, entry in objects.items() if method in entry["image"]["info"]}
        audited = {study for study, labels in studies.items() if {"final", "original"} & set(labels)}
        need(scored == (audited if method.endswith("_audit") else bare), f"{method} scored {sorted(scored)}")
    need(not any("proposal" in entry["labels"] for entry in objects.values()), "a proposal was written unasked")
    return f"{len(tasks)} scores by themselves"


def check_bundle(server: Server, name: str, studies: Labels) -> list[str]:
    """Make all checks of a bundle and print what each saw.

    Returns:
        what failed.
    """
    failed = []
    print(name, flush=True)
    checks = BundleChecks(server, name, studies)
    for what, check in checks.all():
        start = time.monotonic()
        try:
            said = check()
        except (ServerError, AssertionError, KeyError, OSError, ValueError) as error:
            failed.append(f"{name}, {what}")
            said = f"FAILED: {type(error).__name__}: {error}"
        print(f"  {what}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
    return failed
