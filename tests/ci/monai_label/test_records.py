"""Which records a bundle is given, from a folder of studies that mixes all kinds of labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ci.monai_label.app.lib.bundle import Bundle
from ci.monai_label.app.lib.records import (
    Study,
    Tags,
    awaits_label,
    count_kinds,
    make_records,
    refuse_if_hopeless,
    split_records,
)
from ci.monai_label.app.lib.scores import epistemic_entropy, let_drop, mean_of
from ci.monai_label.studies import make_studies
from common.data.contract.records import is_kind
from common.data.loading.samplers import StreamBatchSampler
from tests.bundles.conftest import BUNDLES, ROOT

SHAPE = (16, 16, 16)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    folder = tmp_path_factory.mktemp("mixed") / "studies"
    labels = make_studies(folder, SHAPE)
    return [Study(name, str(folder / f"{name}.nii.gz"), tags) for name, tags in labels.items()]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"clean", "noisy"}, {"clean": 4, "noisy": 2}),  # alc
        ({"label", "unlabelled"}, {"clean": 4, "unlabelled": 11}),  # multicure
        ({"label"}, {"clean": 4}),  # affinity_umamba
        ({"scribble"}, {"label": 7}),  # attenscribble: strokes of 3, masks of 4, which tell by themselves
        ({"raters", "unlabelled"}, {"raters": 7, "unlabelled": 8}),  # ambissl: final is a rater too
    ],
)
def test_each_bundle_gets_its_kinds(studies: list[Study], kinds: set[str], expected: dict[str, int]) -> None:
    assert count_kinds(make_records(studies, kinds, Tags())) == expected


@pytest.mark.parametrize("name", BUNDLES)
def test_every_stream_of_a_bundle_is_filled(studies: list[Study], name: str) -> None:
    streams = dict.fromkeys(Bundle(ROOT / "bundles" / name).kinds, 1)
    records = make_records(studies, streams, Tags())
    sampler = StreamBatchSampler(records, streams, batches=1)
    assert all(sampler.streams)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_study_awaits_a_label_unless_a_training_has_one_to_trust(studies: list[Study], name: str) -> None:
    kinds = Bundle(ROOT / "bundles" / name).kinds
    for study in studies:
        counts = count_kinds(make_records([study], kinds, Tags()))
        assert awaits_label(study, kinds, {}) == (not set(counts) - {"noisy", "unlabelled"})


def test_what_networks_wrote_is_no_rater(studies: list[Study]) -> None:
    written = Study("a", "a.nii.gz", {"original": "o", "proposal": "p", "strokes": "s", "anna": "1", "ben": "2"})
    assert make_records([written], {"raters"}, Tags()) == [{"image": "a.nii.gz", "labels": ["1", "2"]}]
    assert make_records([written], {"raters"}, Tags(raters=("ben", "original"))) == [
        {"image": "a.nii.gz", "labels": ["2", "o"]}
    ]


def test_a_trusted_label_comes_before_a_doubtful_one() -> None:
    study = Study("a", "a.nii.gz", {"original": "o", "final": "f"})
    assert make_records([study], {"clean", "noisy"}, Tags())[0]["label"] == "f"
    assert make_records([study], {"clean", "noisy"}, Tags(clean=("checked",)))[0]["label_quality"] == "noisy"


def test_tags_of_a_request() -> None:
    assert Tags.from_request({"noisy_tags": "draft, students", "rater_tags": ["a"]}) == Tags(
        noisy=("draft", "students"), raters=("a",)
    )


def test_scribbles_of_the_contract_are_told_from_drawings(studies: list[Study], tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    drawn = next(study for study in studies if "strokes" in study.labels)
    record = make_records([drawn], {"scribble"}, Tags())[0]
    assert record["label"] == drawn.labels["strokes"] and not is_kind(record, "scribble")
    values = np.full((4, 4, 4), 255, np.uint8)
    values[0] = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "s.nii.gz")
    sparse = Study("s", "s.nii.gz", {"strokes": str(tmp_path / "s.nii.gz")})
    assert is_kind(make_records([sparse], {"scribble"}, Tags())[0], "scribble")


def test_only_what_is_trusted_validates_and_stays_when_more_comes(studies: list[Study]) -> None:
    records = make_records(studies, {"clean", "noisy"}, Tags())
    training, validation = split_records(records, 0.5)
    assert len(validation) == 2 and all(record["label_quality"] == "clean" for record in validation)
    assert sorted(map(str, training + validation)) == sorted(map(str, records))
    fewer = [record for record in records if record not in training[:1]]
    assert split_records(fewer, 0.34)[1][0] in validation


@pytest.mark.parametrize("share", [-1, 0])
def test_no_share_no_validation(studies: list[Study], share: float) -> None:
    assert split_records(make_records(studies, {"label"}, Tags()), share)[1] == []


def test_the_last_trusted_label_is_trained_with() -> None:
    record = {"image": "a", "label": "b"}
    assert split_records([record], 0.5) == ([record], [])


def test_nothing_to_learn_from_is_said() -> None:
    records = make_records([Study("a", "a.nii.gz", {})], {"label", "unlabelled"}, Tags())
    with pytest.raises(ValueError, match="under the tag final. Fix"):
        refuse_if_hopeless(records, {"label", "unlabelled"}, Tags())


def test_entropy_is_of_the_mean_less_the_mean_of_entropies() -> None:
    """By hand: p = 0.5 and 0.9 of 2 classes."""
    answers = iter([torch.tensor([[0.5], [0.5]]), torch.tensor([[0.9], [0.1]])])

    def entropy(p: float) -> float:
        return float(-(p * torch.tensor(p).log2() + (1 - p) * torch.tensor(1 - p).log2()))

    expected = entropy(0.7) - (entropy(0.5) + entropy(0.9)) / 2
    assert epistemic_entropy(lambda: next(answers), 2, 2, 0) == pytest.approx(expected, abs=1e-6)


def test_answers_that_agree_have_no_epistemic_entropy_however_unsure() -> None:
    assert epistemic_entropy(lambda: torch.full((6, 2, 2), 1 / 3), 3, 4, 0) == 0.0


def test_dropout_alone_is_at_work() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1), torch.nn.Dropout2d(0.5))
    assert let_drop(network) and [module.training for module in network] == [False, False, True]
    assert not let_drop(network[:2])


def test_a_map_that_is_not_finite_is_no_score() -> None:
    with pytest.raises(ValueError, match="not finite"):
        mean_of(torch.tensor([0.0, torch.nan]))
