"""Rules of a plan on made-up data sets, and the search on made-up costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from common.data.contract.plan import rules
from common.data.contract.plan.choice import Choice, write_overlay
from common.data.contract.plan.guide import Guide
from common.data.contract.plan.probe import Measurement, NoRoomError
from common.data.contract.plan.search import CACHE, TARGET, Limits, Search, candidates
from common.data.contract.plan.traits import Foreground, Traits
from tests.data.contract.plan_cases import UNIT, make_traits

Z_SCORE = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
GB = 10**9


def make_guide(**others: Any) -> Guide:
    config = {"labelled": 2, "unlabelled": 2, "patch_size": [32, 32, 32]}
    values: dict[str, Any] = {
        "name": "toy",
        "root": Path("toy"),
        "config": config,
        "streams": {"label": "labelled", "unlabelled": "unlabelled"},
    }
    return Guide(**(values | others))


def sliced_guide(**others: Any) -> Guide:
    config = {"batch_size": 6, "slice_axis": 2, "slice_size": [48, 48]}
    return make_guide(config=config, streams={"scribble": "batch_size"}, **others)


# spacing, patches, slices


def test_spacing_is_the_median() -> None:
    traits = make_traits(spacing=(1.0, 1.0, 2.0))
    traits.spacings[0] = (9.0, 9.0, 9.0)
    assert rules.native_spacing(traits).value == [1.0, 1.0, 2.0]


def test_spacing_across_thick_slices_is_a_low_percentile() -> None:
    traits = make_traits(spacing=(1.0, 1.0, 5.0), count=11)
    traits.spacings[:, 2] = np.arange(2.0, 13.0)  # median 7, 10th percentile 3
    choice = rules.native_spacing(traits)
    assert choice.value == [1.0, 1.0, 3.0] and "10th percentile along axis 2" in choice.reason
    traits.spacings[:3, 2] = 0.1
    assert rules.native_spacing(traits).value == [1.0, 1.0, 1.0], "never finer than the other axes"


def test_coarser_spacing_gives_up_the_finest_axes_first() -> None:
    assert rules.coarsened([0.5, 0.7, 2.0], 1.0) == [1.0, 1.0, 2.0]


def test_structures_keep_some_voxels() -> None:
    traits = make_traits(smallest={"large": 1e6, "small": 8 * 27.0})  # 8 voxels of 3 mm
    least = rules.coarsest(traits, [0.6, 0.6, 0.6])
    assert 3.0 / 1.05 < least <= 3.0
    assert rules.coarsest(make_traits(smallest={"speck": 0.1}), [0.6, 0.6, 0.6]) == 0.6


@pytest.mark.parametrize("size", [[48, 36, 22], [200, 40, 90], [16, 16, 16], [10, 300, 17], [100, 60]])
@pytest.mark.parametrize("voxels", [1, 20_000, 300_000, 10**9])
def test_patch_is_of_multiples_within_image_and_budget(size: list[int], voxels: int) -> None:
    patch = rules.grow_patch(size, voxels, 16)
    assert all(side % 16 == 0 and side >= 16 for side in patch)
    assert all(side - 16 < max(whole, 1) for side, whole in zip(patch, size, strict=True)), "no further than the image"
    assert math.prod(patch) <= max(voxels, 16 ** len(size))
    for axis in range(len(size)):  # nothing more would have fitted
        grown = [side + 16 * (axis == number) for number, side in enumerate(patch)]
        assert grown[axis] >= size[axis] + 16 or math.prod(grown) > voxels


def test_patch_has_the_images_proportions() -> None:
    assert rules.grow_patch([192, 144, 88], 112 * 112 * 80, 16) == [160, 96, 64]
    assert rules.grow_patch([400, 100, 100], 64 * 32 * 32, 16)[0] >= 64


def test_slices_lie_across_thick_voxels_else_across_the_fewest() -> None:
    assert rules.slice_axis(make_traits(spacing=(5.0, 1.0, 1.0)), 2).value == 0
    assert rules.slice_axis(make_traits(shape=(200, 10, 200), spacing=(1.0, 1.0, 1.0)), 2).value == 1
    choice = rules.slice_axis(make_traits(shape=(100, 90, 100), spacing=(1.0, 1.0, 1.0)), 2)
    assert choice.value == 2 and "as in train.yaml" in choice.reason


def test_slices_are_square_when_nearly_so() -> None:
    assert rules.grow_slice(make_traits((216, 190, 10)), 2, 10**6, 16) == [224, 224]
    assert rules.grow_slice(make_traits((216, 190, 10)), 2, 100 * 100, 16) == [96, 96]
    wide = rules.grow_slice(make_traits((300, 100, 10)), 2, 10**6, 16)
    assert wide == [304, 112]
    in_mm = rules.grow_slice(make_traits((100, 100, 10), spacing=(3.0, 1.0, 5.0)), 2, 10**6, 16)
    assert in_mm == [304, 112], "proportions in mm, not in pixels"


# intensities


def test_ct_is_cut_to_the_structures_percentiles() -> None:
    traits = make_traits(modalities=("CT",), foreground=Foreground(-100.0, 300.0, 100.0, 50.0))
    window = rules.intensity(traits, Z_SCORE).value
    assert (window["a_min"], window["a_max"], window["clip"]) == (-100, 300, True)
    assert (window["b_min"], window["b_max"]) == (-4.0, 4.0), "mean 0 and variance 1 of the structures"
    window = rules.intensity(traits, UNIT).value
    assert (window["b_min"], window["b_max"]) == (0.0, 1.0), "the losses need [0, 1]"


def test_hounsfield_units_are_known_without_being_told() -> None:
    found = Foreground(-100.0, 300.0, 100.0, 50.0)
    untold = make_traits(modalities=(), lowest=-1024.0, foreground=found)
    assert rules.intensity(untold, Z_SCORE).value["_target_"] == "ScaleIntensityRanged"
    told_otherwise = replace(untold, modalities=("MR",))
    assert rules.intensity(told_otherwise, Z_SCORE).value == Z_SCORE
    assert rules.intensity(replace(untold, lowest=-20.0), Z_SCORE).value == Z_SCORE


@pytest.mark.parametrize("names", [("CT", "PET"), ("PET", "ct"), ("CT", "CT", "MR")])
def test_one_window_is_not_for_channels_of_several_kinds(names: tuple[str, ...]) -> None:
    """The window of CT would cut PET to nothing, and a zero is water in CT, no background."""
    found = Foreground(-100.0, 300.0, 100.0, 50.0)
    traits = make_traits(modalities=names, channels=len(names), lowest=-1024.0, blanked=True, foreground=found)
    for transform, words in ((Z_SCORE, "z-score of each channel"), (UNIT, "each channel to [0, 1]")):
        choice = rules.intensity(traits, transform)
        assert choice.value == transform
        assert choice.reason.startswith(f"CT beside other channels ({', '.join(names)}): {words}")
    phases = rules.intensity(replace(traits, modalities=("CT", "CT arterial")), Z_SCORE)
    assert phases.value["_target_"] == "ScaleIntensityRanged", "all channels are CT"


def test_channels_without_names_are_not_all_taken_for_ct() -> None:
    found = Foreground(-100.0, 300.0, 100.0, 50.0)
    choice = rules.intensity(make_traits(modalities=(), channels=2, lowest=-1024.0, foreground=found), Z_SCORE)
    assert choice.value == Z_SCORE and "channels that nothing names" in choice.reason


def test_other_images_keep_the_bundles_transform() -> None:
    assert rules.intensity(make_traits(), UNIT).value == UNIT
    assert rules.intensity(make_traits(), Z_SCORE).value == Z_SCORE
    assert rules.intensity(make_traits(blanked=True), Z_SCORE).value == {**Z_SCORE, "nonzero": True}
    assert rules.intensity(make_traits(blanked=True), UNIT).value == UNIT


# batch, schedule, windows


def test_streams_grow_to_the_papers_batch() -> None:
    guide = make_guide(paper_batch={"label": 4, "unlabelled": 12})
    counts = [
        [choice.value for choice in rules.streams(make_traits(), guide, times).values()] for times in (1, 2, 6, 9)
    ]
    assert counts == [[2, 2], [4, 4], [4, 12], [4, 12]] and rules.most_times(guide) == 6
    assert "4 training cases" in rules.streams(make_traits(), guide, 1)["labelled"].reason


def test_short_trainings_have_a_batch_of_their_own() -> None:
    guide = make_guide(paper_batch={"label": 2, "unlabelled": 2}, short_batch={"label": 4})
    counts = {
        short: [c.value for c in rules.streams(make_traits(), guide, 1, short).values()] for short in (False, True)
    }
    assert counts == {False: [2, 2], True: [4, 2]}
    for seconds, labelled in ((100.0, 4), (100_000.0, 2)):
        machine = Machine()
        outcome = Search(make_traits(), guide, Limits(8 * GB, seconds, 64 * GB), CASES).run(machine)
        assert outcome is not None and outcome.candidate.settings["labelled"] == labelled
        assert machine.seen[-1]["labelled"] == labelled


@pytest.mark.parametrize("iterations", [1, 7, 263, 6000, 100_000])
@pytest.mark.parametrize("validations", [1, 2, 5])
def test_schedule_comes_to_the_iterations(iterations: int, validations: int) -> None:
    choices = {key: choice.value for key, choice in rules.schedule(make_guide(), iterations, validations).items()}
    total = choices["max_epochs"] * choices["epoch_length"]
    assert abs(total - iterations) <= max(5, 0.05 * iterations)
    assert choices["max_epochs"] // choices["val_interval"] == validations
    assert choices["max_epochs"] % choices["val_interval"] == 0, "the last epoch is validated"


def test_short_trainings_have_a_higher_rate_within_bounds() -> None:
    guide = make_guide(iterations=6000, learning_rate=0.01, most_learning_rate=0.1)
    rates = [rules.schedule(guide, steps, 1)["learning_rate"].value for steps in (100, 2000, 6000, 20_000)]
    assert rates == [0.1, 0.03, 0.01, 0.01]


def test_windows_follow_the_slices() -> None:
    guide = sliced_guide(windows={"radius": (5, 3), "sigma": (6.0, 2.0)}, window_slice=256)
    values = [
        {key: choice.value for key, choice in rules.windows(guide, [side] * 2).items()} for side in (256, 128, 48)
    ]
    assert values == [{"radius": 5, "sigma": 6.0}, {"radius": 3, "sigma": 3.0}, {"radius": 3, "sigma": 2.0}]
    assert isinstance(values[0]["radius"], int)


# what it would not do


def doubts_of(traits: Traits, **choices: Any) -> str:
    values = {"labelled": 2, "unlabelled": 2, "spacing": [1.0] * 3, "patch_size": [64, 64, 32]} | choices
    return "\n".join(rules.doubts(traits, make_guide(), {key: Choice(value, "") for key, value in values.items()}))


def test_no_doubts_without_reason() -> None:
    assert doubts_of(make_traits()) == ""


def test_fewer_cases_than_a_stream_draws() -> None:
    assert "1 training cases of the kind `label` are fewer than labelled 2" in doubts_of(
        make_traits(kinds={"label": 1})
    )
    assert doubts_of(make_traits(kinds={"label": 2, "unlabelled": 2})) == ""


def test_a_case_has_as_many_slices_as_it_is_deep() -> None:
    sizes = {"slice_axis": Choice(2, ""), "slice_size": Choice([48, 48], ""), "batch_size": Choice(12, "")}
    for depth, told in ((8, 0), (1, 1)):
        traits = make_traits(shape=(100, 100, depth), kinds={"scribble": 2})
        assert len(rules.doubts(traits, sliced_guide(), sizes)) == told


def test_structures_smaller_than_a_voxel() -> None:
    told = doubts_of(make_traits(smallest={"organ": 100.0, "speck": 7.9}), spacing=[2.0, 2.0, 2.0])
    assert "'speck'" in told and "'organ'" not in told


def test_images_smaller_than_the_patch() -> None:
    traits = make_traits(shape=(100, 100, 50), spacing=(1.0, 1.0, 1.0))
    traits.shapes[:3, 2] = 31
    assert "3 of 10 images are smaller than the patch" in doubts_of(traits)


def test_doubts_about_slices() -> None:
    traits = make_traits(shape=(100, 100, 8), spacing=(1.0, 1.0, 4.0), smallest={"speck": 10.0})
    sizes = {"slice_axis": Choice(2, ""), "slice_size": Choice([48, 48], ""), "batch_size": Choice(6, "")}
    told = rules.doubts(traits, sliced_guide(), sizes)
    assert len(told) == 1 and "'speck'" in told[0] and "17.4 mm3" in told[0]
    told = rules.doubts(traits, sliced_guide(), sizes | {"slice_size": Choice([112, 112], "")})
    assert "10 of 10 images have slices smaller than 112 x 112" in told[0]


# the file


def test_overlay_says_each_reason_in_its_line() -> None:
    choices = {
        "rate": Choice(0.1, "one\n  line"),
        "null_value": Choice(None, "none"),
        "words": Choice("a: b # c", "odd"),
        "mapping": Choice({"_target_": "X", "keys": ["a", "b"]}, "it"),
    }
    text = write_overlay(["head"], choices)
    assert yaml.safe_load(text) == {key: choice.value for key, choice in choices.items()}
    lines = text.splitlines()
    assert lines[0] == "# head" and len(lines) == 5
    assert lines[1] == "rate: 0.1 # one line" and all(" # " in line for line in lines[1:])


def test_a_line_of_the_head_stays_one() -> None:
    text = write_overlay(["Settings for two\nlearning_rate: 9\u2028\x85lines: 1"], {"rate": Choice(0.1, "one")})
    assert yaml.safe_load(text) == {"rate": 0.1} and len(text.splitlines()) == 2


# the search


class Machine:
    """A training whose costs are known: memory and time grow with the voxels of a batch."""

    def __init__(self, bytes_a_voxel: float = 1000.0, seconds_a_voxel: float = 1e-6, room: float = math.inf) -> None:
        self.bytes_a_voxel, self.seconds_a_voxel, self.room = bytes_a_voxel, seconds_a_voxel, room
        self.seen: list[dict[str, Any]] = []
        self.others: dict[str, Any] = {}

    def __call__(self, settings: Mapping[str, Any], steps: int) -> Measurement:
        assert 3 <= steps <= 20
        self.seen.append(dict(settings))
        work = math.prod(settings["patch_size"]) * (settings["labelled"] + settings["unlabelled"])
        memory = int(0.5 * GB + self.bytes_a_voxel * work)
        if memory > self.room:
            raise NoRoomError
        known = {
            "start": 10.0,
            "load": 0.1,
            "validate": 0.5,
            "save": 0.1,
            "base": GB // 2,
            "cached": 10**6,
            "cuda": False,
        }
        return Measurement(**(known | {"step": 0.02 + self.seconds_a_voxel * work, "memory": memory} | self.others))


CASES = (10, 2)


def test_the_patch_is_as_large_as_memory_allows() -> None:
    machine, traits, guide = Machine(), make_traits(), make_guide()
    outcome = Search(traits, guide, Limits(4 * GB, None, 64 * GB), CASES).run(machine)
    assert outcome is not None and outcome.memory <= TARGET * 4 * GB
    assert outcome.candidate.settings.items() <= machine.seen[-1].items() or len(machine.seen) > 2
    fitting = [one for one in candidates(traits, guide) if 0.5 * GB + 1000 * one.work + 12 * 10**6 <= TARGET * 4 * GB]
    assert outcome.candidate.work == fitting[-1].work, "nothing larger fits"
    assert outcome.iterations == guide.iterations and len(machine.seen) <= 6


def test_the_patch_leaves_time_for_enough_steps() -> None:
    machine, guide = Machine(seconds_a_voxel=2e-6), make_guide(least_iterations=400, iterations=500)
    limits = Limits(1000 * GB, 300.0, 2000 * GB)
    outcome = Search(make_traits(), guide, limits, CASES, (5.0, 0.0)).run(machine)
    assert outcome is not None and outcome.iterations >= 400
    assert 0.95 * 300 <= outcome.seconds <= 300
    larger = [one for one in candidates(make_traits(), guide) if one.work > outcome.candidate.work]
    spent = 10 + 5 + 12 * 0.1 + 20 * 0.1 + outcome.validations * 2 * 0.5
    assert (300 - spent) / (0.02 + 2e-6 * larger[0].work) < 400, "the next size would leave too few"


def test_less_time_gives_coarser_images() -> None:
    spacings = []
    for seconds in (100.0, 1000.0, 10_000.0):
        search = Search(make_traits(), make_guide(), Limits(1000 * GB, seconds, 2000 * GB), CASES)
        outcome = search.run(Machine(seconds_a_voxel=5e-6))
        assert outcome is not None
        spacings.append(outcome.candidate.settings["spacing"][0])
    assert spacings[0] > spacings[1] > spacings[2] >= 0.6


def test_short_trainings_take_the_settings_for_them() -> None:
    guide = make_guide(keep={"filters": Choice(16, "")}, short={"filters": Choice(8, "")})
    for seconds, filters in ((100.0, 8), (100_000.0, 16)):
        machine = Machine()
        outcome = Search(make_traits(), guide, Limits(8 * GB, seconds, 64 * GB), CASES).run(machine)
        assert outcome is not None and machine.seen[-1]["filters"] == filters and outcome.short == (filters == 8)


def test_no_room_is_searched_below() -> None:
    """What dies of memory that nobody foresaw counts as too large."""
    machine = Machine(room=2 * GB)
    outcome = Search(make_traits(), make_guide(), Limits(40 * GB, None, 64 * GB), CASES).run(machine)
    assert outcome is not None and outcome.measured.memory <= 2 * GB


def test_too_little_memory_for_anything() -> None:
    search = Search(make_traits(), make_guide(), Limits(0.4 * GB, None, 64 * GB), CASES)
    assert search.run(Machine()) is None


def test_images_that_do_not_fit_are_not_kept() -> None:
    machine = Machine()
    machine.others = {"cached": GB}
    limits = Limits(8 * GB, 3600.0, 64 * GB)
    outcome = Search(make_traits(), make_guide(), limits, CASES).run(machine)
    assert outcome is not None and outcome.cache_rate == math.floor(100 * CACHE * 8 / 12) / 100
    machine.others["cuda"] = True  # the GPU's memory holds no prepared images, the host's holds all
    outcome = Search(make_traits(), make_guide(), limits, CASES).run(machine)
    assert outcome is not None and outcome.cache_rate == 1.0
