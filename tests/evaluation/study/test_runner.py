"""Running studies: real processes whose trainings are a few lines of Python, and one study of a real bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data import make_phantom
from common.data.contract.faults import DataError
from common.evaluation.metrics import csv_columns
from common.evaluation.study import __main__ as command_line
from common.evaluation.study.data import BEGUN
from common.evaluation.study.provenance import made_by
from common.evaluation.study.recipe import Row, Run, Study
from common.evaluation.study.runner import Runner
from common.ops.threads import usable_cores
from common.training.lock import FolderInUseError

ROOT = Path(__file__).resolve().parents[3]
TRAINING = """
import pathlib, sys
models = pathlib.Path({models!r})
models.mkdir(parents=True, exist_ok=True)
with open(models / "log.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if {fails!r}:
    sys.exit("the disk is full")
(models / "model_final.pt").touch(), (models / "model.pt").touch()
"""
EVALUATION = """
import pathlib
folder = pathlib.Path({folder!r})
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.csv").write_text({table!r})
"""


DATA = """
import pathlib, sys, time
made, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
if made.exists():
    sys.exit("the output is there already")
made.mkdir()
time.sleep(seconds)
"""


def study(*names: str, **changes: Any) -> Study:
    arguments: dict[str, Any] = {
        **{"title": "A study", "rows": tuple(Row(name, "alc") for name in names), "seeds": (0, 1), "folds": 0},
        **{"section": "test", "weights": "model.pt", "measure_settings": {}, "reference": names[0]},
        **{"metrics": ("dice",), "file": Path("study.yaml")},
    }
    return Study(**{**arguments, **changes})


class Quick(Runner):
    """A runner whose trainings and evaluations take no time; the row ``broken`` fails."""

    def _train(self, run: Run) -> list[str]:
        models = str(self.folder(run) / "models")
        return ["-c", TRAINING.format(models=models, fails=run.row.name == "broken"), "run", "training"]

    def _evaluate(self, run: Run) -> list[str]:
        columns = csv_columns()
        line = dict.fromkeys(columns, "0") | {"case": "a", "structure": "x", "dice": "0.5", "unit": "mm"}
        table = ",".join(columns) + "\n" + ",".join(line[name] for name in columns) + "\n"
        folder = str(self.results(run).parent)
        return ["-c", EVALUATION.format(folder=folder, table=table), "run", "evaluating"]


def trainings(runner: Runner, run: Run) -> list[str]:
    return (runner.folder(run) / "models" / "log.txt").read_text().splitlines()


def test_complete_runs_are_not_run_again(tmp_path: Path) -> None:
    runs = list(study("one", "two").runs())
    shown: list[str] = []
    for _ in range(2):
        runner = Quick(study("one", "two"), None, tmp_path, jobs=2, show=shown.append)
        assert runner.run(runs)
    assert all(len(trainings(runner, run)) == 1 for run in runs)
    assert "4 of 4 runs done" not in shown[0] and "0 of 4 runs done" in shown[0]
    known = [runner.known_state(run) for run in runs]
    assert all(state.peak_mib > 1 for state in known), "the system tells each process's memory"
    assert all(state.made_by == made_by() and torch.__version__ in state.made_by for state in known)


def test_calibrates_before_it_measures(tmp_path: Path) -> None:
    (run,) = study("one", seeds=(0,)).runs()
    for calibrate in (False, True):
        runner = Quick(study("one", calibrate=calibrate), None, tmp_path / str(calibrate))
        assert runner.run([run])
        logs = [path.name for path in runner.folder(run).glob("*.log")]
        assert sorted(logs) == (["calibrating.log"] if calibrate else []) + ["evaluating.log", "training.log"]
        assert ("calibrate" in runner._recipe(run)) == calibrate, "folders of studies without it stay valid"
    commands = Runner(study("one", calibrate=True), None, tmp_path)._recipe(run)
    assert commands["calibrate"][:4] == ["-m", "monai.bundle", "run", "calibrating"]
    assert commands["calibrate"][4:] == commands["evaluate"][4:]


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    (run,) = study("one", seeds=(0,)).runs()
    runner = Quick(study("one"), None, tmp_path)
    models = runner.folder(run) / "models"
    models.mkdir(parents=True)
    (models / "last.ckpt").touch()
    assert runner.run([run])
    assert trainings(runner, run)[-1].endswith("--resume true")


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    shown: list[str] = []
    runs = list(study("broken", "two", seeds=(0,)).runs())
    runner = Quick(study("broken", "two"), None, tmp_path, show=shown.append)
    assert not runner.run(runs)
    assert [runner.states[run.row.name, run.name].word for run in runs] == ["failed", "done"]
    assert any("FAILED: broken" in text and "the disk is full" in text for text in shown)
    assert not Quick(study("broken", "two"), None, tmp_path, show=shown.append).run(runs), "it is tried again"


def test_time_and_memory_of_a_run_that_failed_count(tmp_path: Path) -> None:
    (run,) = study("broken", seeds=(0,)).runs()
    spent = []
    for _ in range(2):
        runner = Quick(study("broken"), None, tmp_path)
        assert not runner.run([run])
        spent.append(runner.known_state(run))
    assert spent[1].seconds > spent[0].seconds > 0 and spent[0].peak_mib > 1
    assert [state.word for state in spent] == ["waiting", "waiting"]


def test_a_run_that_goes_on_adds_to_what_it_took(tmp_path: Path) -> None:
    (run,) = study("one", seeds=(0,)).runs()
    runner = Quick(study("one"), None, tmp_path)
    runner.folder(run).mkdir(parents=True)
    (runner.folder(run) / "spent.json").write_text('{"seconds": 1000.0, "peak_mib": 50000.0}')
    assert runner.run([run])
    done = runner.known_state(run)
    assert done.word == "done" and 1000 < done.seconds < 1500 and done.peak_mib == 50000


def test_other_settings_are_refused(tmp_path: Path) -> None:
    (run,) = study("one", seeds=(0,)).runs()
    Quick(study("one"), None, tmp_path).run([run])
    other = Run(Row("one", "alc", data=("split {source} --seed {seed}",)), 0)
    with pytest.raises(DataError, match="a run with other settings is there"):
        Quick(study("one"), None, tmp_path).run([other])


def test_other_configs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config says counts, its comments do not."""
    configs = tmp_path / "bundles" / "mine" / "configs"
    configs.mkdir(parents=True)
    (configs / "evaluate.yaml").write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    run = Run(Row("one", "mine"), 0)

    def train_with(text: str) -> None:
        (configs / "train.yaml").write_text(text)
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            Quick(study("one"), None, tmp_path / "out").run([run])

    train_with("rate: 1")
    train_with("rate: 1 # of learning")
    with pytest.raises(DataError, match="a run with other settings is there"):
        train_with("rate: 2")


def test_a_second_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    (run,) = study("one", seeds=(0,)).runs()
    program = "import sys, time; from common.training.lock import lock_folders\n"
    program += "with lock_folders(sys.argv[1], what='study'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUseError, match=r"another study writes to this folder .* give another --output"):
            Quick(study("one"), None, tmp_path).run([run])
        other.kill()
    assert Quick(study("one"), None, tmp_path).run([run]), "a killed study's lock is taken over"


def test_the_end_of_a_study_is_the_end_of_its_runs(tmp_path: Path) -> None:
    """Killed by SIGTERM it says how to go on and leaves no training behind."""
    source = make_phantom(tmp_path / "source", kind="dense", shape=(24, 24, 16), cases={"training": 4, "validation": 1})
    recipe = "{title: A, bundle: alc, measure: {section: validation, weights: model.pt}, reference: a, rows: {a: {}}}"
    (tmp_path / "study.yaml").write_text(recipe)
    command = [sys.executable, "-m", "common.evaluation.study", str(tmp_path / "study.yaml")]
    command += ["--dataset_dir", str(source), "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "out" / "runs" / "a" / "seed_0" / "training.log"
        for _ in range(600):
            if log.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.terminate()
        shown, last = process.communicate(timeout=60)
    assert (process.returncode, last) == (130, "\nStopped. The same command goes on from here.\n")
    assert "a  running" in shown
    lock = log.parent / "models" / "training.lock"
    assert not lock.exists() or not Path(f"/proc/{json.loads(lock.read_text())['process']}").exists()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where `python -m common.data FOLDER SECONDS` makes a folder at once, then goes on."""
    (tmp_path / "common" / "data").mkdir(parents=True)
    for path in ("common/__init__.py", "common/data/__init__.py"):
        (tmp_path / path).touch()
    (tmp_path / "common" / "data" / "__main__.py").write_text(DATA)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_started_once_a_study_is_stopped(stand_in: Path) -> None:
    """Neither the training whose data are being made, nor those data's next command."""

    class Stopped(Quick):
        def _make_data(self, run: Run) -> None:
            if run.row.name == "stops":
                while not list(stand_in.glob("out/data/*_seed_0")):
                    time.sleep(0.02)
                raise KeyboardInterrupt
            super()._make_data(run)

    recipe = study("stops", "makes")
    data = ("{made} 5", "{made}_more 0")
    runs = [Run(recipe.rows[0], 0), Run(Row("makes", "alc", data=data), 0)]
    runner = Stopped(recipe, stand_in / "source", stand_in / "out", jobs=2)
    with pytest.raises(KeyboardInterrupt):
        runner.run(runs)
    assert not (runner.folder(runs[1]) / "training.log").exists()
    assert sorted(path.name for path in (stand_in / "out" / "data").iterdir()) == ["source", "source.json"]
    assert Quick(recipe, stand_in / "source", stand_in / "out").run([Run(Row("makes", "alc", data=("{made} 0",)), 1)])


def test_data_whose_command_was_killed_are_made_again(stand_in: Path) -> None:
    run = Run(Row("one", "alc", data=("{made} 0",)), 0)
    runner = Quick(study("one"), stand_in / "source", stand_in / "out")
    assert runner.run([run])
    (mark,) = (stand_in / "out" / "data").glob(".*.made")
    mark.rename(mark.with_name(BEGUN))  # all is written, and then it was killed
    (runner.folder(run) / "done.json").unlink()
    assert runner.run([run]) and mark.exists()


def test_data_of_another_study_stay(stand_in: Path) -> None:
    """What was there before a command is not its own."""
    run = Run(Row("one", "alc", data=("{made} 0",)), 0)
    runner = Quick(study("one"), stand_in / "source", stand_in / "out")
    other = runner._made(run) / "other"
    other.mkdir(parents=True)
    for _ in range(2):
        assert not runner.run([run])
        assert "there already" in runner.states["one", "seed_0"].message and other.is_dir()


def test_another_data_set_is_refused(stand_in: Path) -> None:
    run = Run(Row("one", "alc"), 0)
    assert Quick(study("one"), stand_in / "source", stand_in / "out").run([run])
    assert Quick(study("one"), stand_in / "source", stand_in / "out").run([run])
    with pytest.raises(DataError, match="was made from another data set"):
        Quick(study("one"), stand_in, stand_in / "out").run([run])
    (stand_in / "source" / "dataset.json").write_text('{"training": []}')
    with pytest.raises(DataError, match=r"made before dataset\.json of .* changed\. Fix: give another --output"):
        Quick(study("one"), stand_in / "source", stand_in / "out").run([run])


def test_the_commands(tmp_path: Path) -> None:
    """What is typed, and that rows which share a recipe of data share the data."""
    data = ("split {source} --output s.json", "corrupt {source} --seed {seed} --output {made} --fraction {share}")
    overlays = (Path("bundles/alc/configs/la.yaml"),)
    rows = [Row(name, "alc", overlays, {"alpha": 1.5, "spacing": [1, 2]}, data, values={"share": 0.5}) for name in "ab"]
    runner = Runner(study("a", weights="model_final.pt"), tmp_path, tmp_path / "out")
    train, evaluate = runner._train(Run(rows[0], 7)), runner._evaluate(Run(rows[0], 7))
    assert train[:4] == ["-m", "monai.bundle", "run", "training"]
    assert train[5] == "['bundles/alc/configs/train.yaml', 'bundles/alc/configs/la.yaml']"
    pairs = dict(zip(train[4::2], train[5::2], strict=True))
    assert (pairs["--seed"], pairs["--alpha"], pairs["--spacing"]) == ("7", "1.5", "[1, 2]")
    assert "evaluate.yaml" in evaluate[5]
    assert evaluate[evaluate.index("--weights") + 1].endswith("seed_7/models/model_final.pt")
    made = {runner._made(Run(row, 7)) for row in rows}
    assert len(made) == 1 and runner._made(Run(rows[0], 8)) not in made
    assert "--fraction 0.5" in runner._data_commands(Run(rows[0], 7))[1]


def test_jobs_share_the_cores(tmp_path: Path) -> None:
    runner = Runner(study("one"), None, tmp_path, jobs=usable_cores())
    assert runner._environment(0)["OMP_NUM_THREADS"] == "1"


@pytest.mark.slow
def test_a_study_of_a_bundle(tmp_path: Path) -> None:
    """As typed: data made from a read-only folder, two rows, tables, and nothing to do the second time."""
    cases = {"training": 6, "validation": 1, "test": 2}
    source = make_phantom(tmp_path / "source", kind="dense", shape=(24, 24, 16), cases=cases)
    file = tmp_path / "study.yaml"
    file.write_text("""
bundle: alc
settings: {max_epochs: 1, epoch_length: 1, patch_size: [16, 16, 16], overlap: 0.0}
data:
- corrupt {source} --kind noise --fraction 0.5 --radius 1 2 --seed {seed} --output {made}
measure: {weights: model_final.pt}
rows:
  H-Sup: {overlays: [clean_only]}
  ALC: {}
""")
    command = [sys.executable, "-m", "common.evaluation.study", str(file), "--dataset_dir", str(source)]
    command += ["--output", str(tmp_path / "out")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| H-Sup |" in text and "| ALC |" in text
    assert sorted(path.name for path in source.glob("*.json")) == ["dataset.json"], "the source is left as it was"
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0 and "done" in second.stdout.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"rows": "three"}, "no such row"), ({"seeds": 7}, "no such seed"), ({"jobs": 0}, "--jobs: is 0")],
)
def test_wrong_choices(arguments: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(DataError, match=words):
        command_line.main("bundles/alc/studies/la_4.yaml", str(tmp_path), **arguments)
