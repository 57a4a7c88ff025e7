"""Weights and runs on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from common.training import runs
from common.training.runs import first_rank_first, is_first_rank, load_weights, start_results, start_run
from tests.tiny import assert_same_to_the_bit

LOGS = ("history.csv", "events.out.tfevents.1.host.0")
WEIGHTS = ("model.pt", "model_final.pt", "last.ckpt")


def leave_a_run(ckpt_dir: Path, output_dir: Path, content: str = "first", time: float = 1e9) -> None:
    for folder, names in ((ckpt_dir, WEIGHTS), (output_dir, LOGS)):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text(f"{content} {name}")
            os.utime(folder / name, (time, time))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "models", tmp_path / "eval"


def test_a_first_run_finds_nothing_to_do(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    start_run(*folders)
    assert not (folders[0] / "previous").exists()
    assert caplog.text == ""


def test_a_new_run_sets_the_earlier_one_aside(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    models, output = folders
    leave_a_run(*folders)
    (output / "test").mkdir()
    (output / "test" / "metrics.csv").write_text("results")
    with caplog.at_level(logging.WARNING):
        start_run(*folders)
    (previous,) = (models / "previous").iterdir()
    assert (previous / "test" / "metrics.csv").read_text() == "results"  # of the earlier weights
    kept = {path.name: path.read_text() for path in previous.iterdir() if path.is_file()}
    assert kept == {n: f"first {n}" for n in WEIGHTS + LOGS}
    assert str(previous) in caplog.text and "--resume true would have continued it" in caplog.text
    # a server may be using the weights; the state to resume is of no use to another run, nor are its logs
    assert sorted(path.name for path in models.glob("*.pt")) == ["model.pt", "model_final.pt"]
    assert list(output.iterdir()) == []


def test_a_calibration_is_kept_with_its_weights(folders: tuple[Path, Path]) -> None:
    leave_a_run(*folders)
    (folders[0] / "calibration.json").write_text("{}")
    os.utime(folders[0] / "calibration.json", (1e9, 1e9))
    start_run(*folders)
    (previous,) = (folders[0] / "previous").iterdir()
    assert (previous / "calibration.json").is_file()
    assert (folders[0] / "calibration.json").is_file(), "the weights are still those that it was fitted to"


def test_nothing_is_lost_over_many_runs(folders: tuple[Path, Path]) -> None:
    for number in range(3):
        leave_a_run(*folders, content=str(number), time=1e9 + number)
        start_run(*folders)
    kept = sorted(path.read_text() for path in (folders[0] / "previous").rglob("*") if path.is_file())
    assert kept == sorted(f"{number} {name}" for number in range(3) for name in WEIGHTS + LOGS)


def test_starting_twice_keeps_one_copy(folders: tuple[Path, Path]) -> None:
    leave_a_run(*folders)
    start_run(*folders)
    start_run(*folders)
    kept = [path for path in (folders[0] / "previous").rglob("*") if path.is_file()]
    assert len(kept) == len(WEIGHTS + LOGS)


def test_resuming_touches_nothing(folders: tuple[Path, Path]) -> None:
    leave_a_run(*folders)
    start_run(*folders, resume=True)
    assert {path.name for path in folders[0].iterdir()} == set(WEIGHTS)
    assert {path.name for path in folders[1].iterdir()} == set(LOGS)


@pytest.mark.parametrize("resume", [True, False])
def test_half_written_weights_are_removed(resume: bool, folders: tuple[Path, Path]) -> None:
    leave_a_run(*folders)
    (folders[0] / ".writing-abc.pt").write_text("half")
    start_run(*folders, resume=resume)
    assert not list(folders[0].rglob(".writing-*"))


def test_nothing_to_resume(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"last.ckpt: nothing to resume. Fix: leave out --resume"):
        start_run(*folders, resume=True)


def test_other_processes_leave_the_folders_alone(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    leave_a_run(*folders)
    monkeypatch.setattr(runs, "is_first_rank", lambda: False)
    start_run(*folders)
    assert {path.name for path in folders[0].iterdir()} == set(WEIGHTS)


@pytest.mark.parametrize(("rank", "order"), [(0, ["block", "barrier"]), (1, ["barrier", "block"])])
def test_the_first_process_goes_first(rank: int, order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "barrier", lambda: happened.append("barrier"))
    assert is_first_rank() is (rank == 0)
    with first_rank_first():
        happened.append("block")
    assert happened == order


def test_one_process_waits_for_nobody() -> None:
    with first_rank_first():
        assert is_first_rank()


# weights


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"network": s, "epoch": 3}])
def test_weights_come_back(wrap: Any, tmp_path: Path) -> None:
    trained, network = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(wrap(trained.state_dict()), tmp_path / "model.pt")
    assert load_weights(network, tmp_path / "model.pt") is network
    assert_same_to_the_bit(network.state_dict(), trained.state_dict())


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model.pt: no trained weights here. Fix: train first, or give"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


def test_a_folder_is_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no trained weights here. Fix: train first"):
        load_weights(nn.Linear(2, 3), tmp_path)


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 4).state_dict(), tmp_path / "model.pt")
    message = r"weight: \(4, 2\) in the file, \(3, 2\) in the network.*Fix: give the --num_classes and --in_channels"
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3)).state_dict(), tmp_path / "model.pt")
    network = nn.Linear(2, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"of another network \(0.bias; 0.weight; bias\)"):
        load_weights(network, tmp_path / "model.pt")
    assert_same_to_the_bit(network.state_dict(), before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no weights at all"])
def test_a_broken_file_is_told_from_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt: this is no file of weights. Fix: give a model.pt"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}])
def test_a_flipped_byte_is_found(wrap: Any, tmp_path: Path) -> None:
    trained, path = nn.Linear(20, 30), tmp_path / "model.pt"
    torch.save(wrap(trained.state_dict()), path)
    raw = bytearray(path.read_bytes())
    raw[raw.find(trained.weight.detach().numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(raw)
    torch.load(path, weights_only=True)  # torch does not mind
    with pytest.raises(ValueError, match=r"model.pt: is damaged: the checksum of data/\d+ is wrong. Fix: give a"):
        load_weights(nn.Linear(20, 30), path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    trained = nn.Linear(2, 3)
    trained.bias.data[1] = value
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: bias has 1 of 3 values that are NaN or infinite. Fix: give"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


def test_weights_of_an_older_format_are_read(tmp_path: Path) -> None:
    """Before its zip format torch wrote bare pickles, which hold no checksum."""
    trained, network = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save(trained.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    load_weights(network, tmp_path / "model.pt")
    assert_same_to_the_bit(network.state_dict(), trained.state_dict())


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"weight": "text", "bias": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"weight: str in the file, \(3, 2\) in the network"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


def test_a_tensor_alone_is_no_weights(tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt: holds a Tensor"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """A pickle may run any command when it is read; weights of strangers must not."""

    class Command:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"weight": Command()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="this is no file of weights"):
        load_weights(nn.Linear(2, 3), tmp_path / "model.pt")
    assert not (tmp_path / "was run").exists()


def test_results_make_way_for_new_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = tmp_path / "eval" / "test"
    start_results(results)
    assert not results.exists() and caplog.text == ""
    for number in range(2):
        results.mkdir(parents=True)
        (results / "metrics.csv").write_text(str(number))
        os.utime(results / "metrics.csv", (1e9 + number, 1e9 + number))
        start_results(results)
    assert not results.exists() and "Earlier results are kept in" in caplog.text
    kept = sorted((tmp_path / "eval" / "previous").iterdir())
    assert [(folder / "metrics.csv").read_text() for folder in kept] == ["0", "1"]


def test_a_folder_that_cannot_be_written_to_shows_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        start_run(tmp_path / "file" / "models", tmp_path / "eval")


def test_a_folder_with_results_of_both_kinds_moves_once(folders: tuple[Path, Path]) -> None:
    leave_a_run(*folders)
    (folders[1] / "all").mkdir()
    for name in ("metrics.csv", "audit.csv"):
        (folders[1] / "all" / name).write_text(name)
    start_run(*folders)
    (previous,) = (folders[0] / "previous").iterdir()
    assert {path.name for path in (previous / "all").iterdir()} == {"metrics.csv", "audit.csv"}
