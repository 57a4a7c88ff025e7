"""The largest component of each structure."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from common.data.loading.components import LargestComponentd


def segmentation() -> MetaTensor:
    volume = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    volume[0, :3, :3, :3] = 1
    volume[0, 3, 3, 3] = 1  # shares a corner
    volume[0, 6, 6, 6] = 1
    volume[0, 7] = 2
    volume[0, 5, 0, 0:2] = 2
    return MetaTensor(volume, meta={"filename_or_obj": "a.nii.gz"})


def test_each_structure_keeps_its_largest_component() -> None:
    given = segmentation()
    found = LargestComponentd()({"pred": given, "probabilities": 5})
    kept = given.clone()
    kept[0, 6, 6, 6] = 0
    kept[0, 5, 0, 0:2] = 0
    assert torch.equal(found["pred"], kept) and found["pred"].dtype == torch.uint8
    assert found["pred"].meta["filename_or_obj"] == "a.nii.gz" and found["probabilities"] == 5
    assert torch.equal(found["left_out"], given - kept)
    assert torch.equal(given, segmentation())


def test_nothing_changes_where_it_is_off_or_nothing_is_there() -> None:
    given = segmentation()
    assert LargestComponentd("pred", active=False)({"pred": given}) == {"pred": given}
    empty = MetaTensor(torch.zeros(1, 4, 4, 4, dtype=torch.uint8))
    assert not LargestComponentd()({"pred": empty})["pred"].any()
