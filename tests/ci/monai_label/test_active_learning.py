"""Which studies the app scores and asks for, with stand-ins for MONAI Label; the real one is in test_server.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ci.monai_label.app_folder import APP
from tests.bundles.conftest import BUNDLES, ROOT

#: what the app imports of MONAI Label
IMPORTED = {
    "monailabel": "__version__",
    "monailabel.interfaces.app": "MONAILabelApp",
    "monailabel.interfaces.datastore": "Datastore",
    "monailabel.interfaces.tasks.infer_v2": "InferTask",
    "monailabel.interfaces.tasks.scoring": "ScoringMethod",
    "monailabel.interfaces.tasks.strategy": "Strategy",
    "monailabel.interfaces.tasks.train": "TrainTask",
    "monailabel.interfaces.utils.transform": "run_transforms",
    "monailabel.tasks.activelearning.first": "First",
    "monailabel.tasks.activelearning.random": "Random",
    "monailabel.tasks.infer.bundle": "BundleInferTask",
    "monailabel.tasks.train.bundle": "BundleTrainTask",
    "monailabel.utils.others.class_utils": "unload_module",
    "monailabel.utils.others.generic": "name_to_device",
}


class StandIn:
    """For any of them."""

    def __init__(self, *args: Any) -> None:
        pass


class Store:
    """A datastore of empty files.

    Args:
        folder: for them.
        studies: tags by study.
    """

    def __init__(self, folder: Path, studies: Mapping[str, str]) -> None:
        self.folder = folder
        self.tags = {study: tags.split() for study, tags in studies.items()}
        self.infos: dict[str, dict[str, Any]] = {study: {} for study in studies}
        self.submitted: dict[tuple[str, str], float] = {}
        for study, tags in self.tags.items():
            for tag in tags:
                (folder / f"{study}_{tag}").touch()

    def list_images(self) -> list[str]:
        return list(self.tags)

    def get_labels_by_image_id(self, image: str) -> dict[str, str]:
        return dict.fromkeys(self.tags[image], image)

    def get_label_uri(self, label: str, tag: str) -> str:
        return str(self.folder / f"{label}_{tag}")

    def get_label_info(self, label: str, tag: str) -> dict[str, Any]:
        return {"ts": self.submitted.get((label, tag), 0)}

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / image)

    def get_image_info(self, image: str) -> dict[str, Any]:
        return self.infos[image]

    def update_image_info(self, image: str, info: dict[str, Any]) -> None:
        self.infos[image].update(info)


class App:
    """The app's strategies and scoring methods, of every bundle; networks disagree by 0.5 on every image."""

    def __init__(self, made: Any) -> None:
        self.scoring, self.strategies = made.init_scoring_methods(), made.init_strategies()

    def scored(self, name: str, store: Store, **request: Any) -> list[str]:
        """Studies that a bundle scores."""
        return list(self.scoring[f"{name}_disagreement"](request, store))

    def offered(self, method: str, store: Store, **request: Any) -> list[str]:
        """Studies in the order in which a strategy asks for them."""
        studies = []
        while chosen := self.strategies[method](request, store):
            studies.append(chosen["id"])
            del store.tags[chosen["id"]]
        return studies


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    weights = tmp_path_factory.mktemp("weights") / "model.pt"
    weights.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name, imported in IMPORTED.items():
            module = ModuleType(name)
            setattr(module, imported, StandIn)
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(APP)
        main = importlib.import_module("main")
        made = object.__new__(main.ImperfectLabelsApp)
        made.bundles = main.bundles_in(ROOT / "bundles")
        for bundle in made.bundles.values():
            bundle.weights = weights
        infer = SimpleNamespace(drops=False, disagrees=True, mean_disagreement=lambda image: 0.5)
        made._infers = dict.fromkeys(made.bundles, infer)
        yield App(made)
        for name in [name for name in sys.modules if name.split(".")[0] in ("main", "lib")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("clean_tags", "expected"),
    [
        ("final,checked", ["c"]),
        ("checked , final", ["c"]),
        (["final", "checked"], ["c"]),
        (["final"], ["b", "c"]),
        ("checked", ["a", "c"]),
        ("", ["b", "c"]),
        (None, ["b", "c"]),
    ],
)
def test_a_study_with_any_clean_tag_is_neither_scored_nor_asked_for(
    app: App, tmp_path: Path, clean_tags: Any, expected: list[str]
) -> None:
    store = Store(tmp_path, {"a": "final", "b": "checked", "c": ""})
    assert app.scored("multicure", store, clean_tags=clean_tags) == expected
    assert app.offered("multicure_disagreement", store, clean_tags=clean_tags) == expected


@pytest.mark.parametrize("name", BUNDLES)
def test_what_a_bundle_learns_a_trusted_label_from_is_not_asked_for_again(app: App, tmp_path: Path, name: str) -> None:
    learnt_from = {"ambissl": {"done", "rated"}, "attenscribble": {"done", "drawn"}}.get(name, {"done"})
    studies = {"bare": "", "done": "final", "drawn": "strokes", "rated": "anna bert", "written": "original proposal"}
    expected = sorted(set(studies) - learnt_from)
    store = Store(tmp_path, studies)
    assert app.scored(name, store) == expected
    store.infos["rated"][f"{name}_disagreement"] = store.infos["drawn"][f"{name}_disagreement"] = {"score": 0.9}
    assert sorted(app.offered(f"{name}_disagreement", store)) == expected


def test_tags_of_the_training_say_whose_labels_count(app: App, tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": "anna", "b": "bert", "c": "lines", "d": "strokes"})
    assert app.scored("ambissl", store, rater_tags="bert, carl") == ["a", "c", "d"]
    assert app.scored("attenscribble", store, stroke_tags="lines") == ["a", "b", "d"]
    assert app.offered("attenscribble_disagreement", store, stroke_tags="lines") == ["a", "b", "d"]


def test_a_reader_who_is_named_is_asked_for_what_others_have_labelled(app: App, tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": "anna", "b": "anna bert", "c": "", "d": "bert"})
    assert app.scored("ambissl", store, label_tag="bert") == ["a", "c"]
    assert app.offered("ambissl_disagreement", store, label_tag="bert") == ["a", "c"]


def test_an_audited_label_is_asked_for_until_it_is_submitted_anew(app: App, tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": "final", "b": "original", "c": "final", "d": "final"})
    for study, score in (("a", 0.2), ("b", 0.7), ("c", 0.9)):
        store.infos[study]["alc_audit"] = {"score": score, "date": "2026-01-01T00:00:00+00:00"}
    store.submitted["c", "final"] = 1_800_000_000  # in 2027
    assert app.offered("alc_audit", store) == ["b", "a"]
