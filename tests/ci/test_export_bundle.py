"""Export of a stand-alone bundle: on a small made-up repository, and on the bundles that are here."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ci.export import ROOT, ExportError, export_bundle
from ci.export.configs import prepend, set_keys
from common.files import file_digest

BUNDLES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
METADATA = {
    "version": "1.2.3",
    "pytorch_version": "2.13.0",
    "monai_version": "1.6.1",
    "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.4.2"},
    "name": "Toy",
    "authors": "those of the toy",
    "references": ["A paper, 2025.", "An older one, 2016."],
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "modality": "MR", "spatial_shape": ["4*n", "4*n"]}}
    },
}
FILES = {
    "common/__init__.py": "",
    "common/trainer.py": "from .ops.window import mean\nfrom . import schedules\n",
    "common/schedules.py": "def ramp() -> None: ...\n",
    "common/unused.py": "import numpy\n",
    "common/ops/__init__.py": "",
    "common/ops/window.py": "def mean() -> None:\n    from ..losses import loss\n",
    "common/losses.py": '"""Not common.png, but common.losses."""\n',
    "common/data/__init__.py": "def open_data() -> None: ...\n",
    "common/data/__main__.py": "from . import open_data\n",
    "bundles/toy/LICENSE": "Apache",
    "bundles/toy/scripts/__init__.py": "",
    "bundles/toy/scripts/method.py": "from common.trainer import X  # see common.trainer\nfrom .deep import y\n",
    "bundles/toy/scripts/deep/__init__.py": "from common import schedules\n",
    "bundles/toy/configs/metadata.json": json.dumps(METADATA),
    "bundles/toy/configs/train.yaml": (
        "bundle_root: bundles/toy # here\n"
        "# python -m monai.bundle run --config_file bundles/toy/configs/train.yaml\n"
        "net:\n  _target_: scripts.method.Net\n  sizes: [1, 2]\n"
        "train:\n  handlers:\n  - _target_: common.losses.loss\n"
    ),
    "bundles/toy/configs/inference.yaml": (
        "network_def:\n  _target_: torch.nn.Linear\n  in_features: 2\n  out_features: 1\n"
        "handlers:\n- {_target_: common.losses.loss}\n- _target_: Other\n"
        "same: '%handlers'\n"
    ),
    "bundles/toy/docs/README.md": (
        "# Toy\n\n## Model overview\n\nAt the repository root: `common/losses.py`, `bash ci/demo.sh`; "
        "[method](../scripts/method.py), [losses](../../../common/losses.py#L3), [house](../../../README.md); "
        "run `python -m common.data check DIR`\n"
    ),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(content)
    return tmp_path / "repository"


@pytest.fixture
def exported(repository: Path, tmp_path: Path) -> Path:
    return export_bundle("toy", tmp_path / "out", without_weights=True, root=repository)[0]


def test_only_the_needed_part_of_common_goes_along(exported: Path) -> None:
    folder = exported / "scripts" / "_common"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    assert files == {
        "__init__.py", "trainer.py", "schedules.py", "losses.py", "ops/__init__.py", "ops/window.py",
        "data/__init__.py", "data/__main__.py",
    }  # fmt: skip


def test_scripts_import_the_copy(exported: Path) -> None:
    scripts = exported / "scripts"
    expected = "from ._common.trainer import X  # see scripts._common.trainer\nfrom .deep import y\n"
    assert (scripts / "method.py").read_text() == expected
    assert (scripts / "deep" / "__init__.py").read_text() == "from .._common import schedules\n"
    assert (scripts / "_common" / "losses.py").read_text() == '"""Not common.png, but scripts._common.losses."""\n'


def test_configs_stand_alone(exported: Path) -> None:
    train = (exported / "configs" / "train.yaml").read_text()
    assert train.startswith("bundle_root: $next((str(call.frame.f_locals['self'].config_root_path")
    assert "\n# python -m monai.bundle run --config_file configs/train.yaml\n" in train
    assert yaml.safe_load((exported / "configs" / "inference.yaml").read_text()) == {
        "network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1},
        "handlers": [{"_target_": "scripts._common.losses.loss"}, {"_target_": "Other"}],
        "same": "%handlers",
        "imports": ["$import inspect", "$import sys"],
        "initialize": ["$sys.path.insert(1, @bundle_root)"],
    }


@pytest.mark.parametrize("name", ["train", "inference"])
def test_json_twins_say_the_same(name: str, exported: Path) -> None:
    twin = json.loads((exported / "configs" / f"{name}.json").read_text())
    assert twin == yaml.safe_load((exported / "configs" / f"{name}.yaml").read_text())


def test_documentation_points_to_what_is_there(exported: Path) -> None:
    text = (exported / "docs" / "README.md").read_text()
    assert (
        "In the bundle's folder: `scripts/_common/losses.py`, the collection's demo; [method](../scripts/method.py), "
        "[losses](../scripts/_common/losses.py#L3), house; run `python -m scripts._common.data check DIR`\n"
    ) in text
    titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    sections = ["Export", "System Configuration", "Citation Info", "References"]
    assert titles == ["Toy", "**Authors**", "**Tags**", "Model Description", *sections]
    assert "those of the toy\n" in text and "Segmentation, 2D, MR, Toy\n" in text and "nibabel 5.4.2" in text
    assert "[1] A paper, 2025.\n[2] An older one, 2016.\n" in text


def test_zip_holds_the_folder_and_the_weights(repository: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "best.pt")
    folder, archive = export_bundle("toy", tmp_path / "out", weights=tmp_path / "best.pt", root=repository)
    assert archive.name == "toy_v1.2.3.zip"
    with zipfile.ZipFile(archive) as file:
        assert file.read("toy/models/model.pt") == (tmp_path / "best.pt").read_bytes()
        names = {name for name in file.namelist() if not name.endswith("/")}
    assert names == {f"toy/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fitted_to", ["these", "others", None])
def test_the_temperature_of_the_weights_goes_along(fitted_to: str | None, repository: Path, tmp_path: Path) -> None:
    weights = tmp_path / "best.pt"
    torch.save(torch.nn.Linear(2, 1).state_dict(), weights)
    content = {"these": file_digest(weights), "others": "0" * 64}
    (tmp_path / "calibration.json").write_text(json.dumps({"weights": content[fitted_to]} if fitted_to else {}))
    if fitted_to is None:
        with pytest.raises(ExportError, match=r"no file that calibrating wrote\. Fix: remove it"):
            export_bundle("toy", tmp_path / "out", weights=weights, root=repository)
        return
    folder, _ = export_bundle("toy", tmp_path / "out", weights=weights, root=repository)
    assert (folder / "models" / "calibration.json").is_file() == (fitted_to == "these")


def test_weights_of_another_network_are_refused(repository: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 1).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ExportError, match=r"do not go into the network .*size mismatch.*--overlay and --dataset_dir"):
        export_bundle("toy", tmp_path / "out", weights=tmp_path / "other.pt", root=repository)
    assert list((tmp_path / "out").iterdir()) == []


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda repository: (repository / name).write_text(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("common/schedules.py", "import common.losses\n"), "imports inside common are relative"),
        (write("bundles/toy/scripts/method.py", "import common.losses\n"), "write `from common.x import y`"),
        (write("bundles/toy/configs/la.yaml", "imports: [$import scripts]\n"), "runs before the bundle's folder"),
        (
            write("bundles/toy/configs/la.yaml", 'a: ["%bundles/toy/configs/train.yaml::net"]\n'),
            "takes a block from another file",
        ),
    ],
)
def test_what_cannot_stand_alone_is_refused(
    repository: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(repository)
    with pytest.raises(ExportError, match=message):
        export_bundle("toy", tmp_path / "out", without_weights=True, root=repository)
    assert not list((tmp_path / "out").iterdir())


def test_missing_weights_and_unknown_names(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no weights. Fix: train first"):
        export_bundle("toy", tmp_path / "out", root=repository)
    with pytest.raises(ExportError, match="Fix: use one of toy"):
        export_bundle("boy", tmp_path / "out", root=repository)


def test_an_earlier_export_is_replaced_only_when_asked(exported: Path, repository: Path) -> None:
    (exported / "mine.txt").write_text("")
    with pytest.raises(ExportError, match="--overwrite"):
        export_bundle("toy", exported.parent, without_weights=True, root=repository)
    assert (exported / "mine.txt").exists()
    export_bundle("toy", exported.parent, without_weights=True, overwrite=True, root=repository)
    assert not (exported / "mine.txt").exists()


def test_items_come_first_in_a_list_and_once() -> None:
    text = "imports:\n- $import torch # of all\n# about a\na: 1\n"
    found = prepend(text, "imports", ["$import sys", "$import torch"])
    assert found == "imports:\n- $import sys\n- $import torch # of all\n# about a\na: 1\n"
    assert yaml.safe_load(prepend("imports: [$import torch]\na: 1\n", "imports", ["$import sys"])) == {
        "imports": ["$import sys", "$import torch"],
        "a": 1,
    }, "a list on its key's line"
    assert prepend(text, "initialize", ["$f(@a)"]) == text + '\ninitialize:\n- "$f(@a)"\n'


def test_files_of_more_than_25_mb_are_named(repository: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, tmp_path / "small.pt")
    torch.save({"model": torch.nn.Linear(2, 1).state_dict(), "more": torch.zeros(7 * 10**6)}, tmp_path / "large.pt")
    small, _ = export_bundle("toy", tmp_path / "small", weights=tmp_path / "small.pt", root=repository)
    assert not (small / "large_files.yml").exists()
    large, _ = export_bundle(
        "toy",
        tmp_path / "out",
        weights=tmp_path / "large.pt",
        root=repository,
        large_files_url="https://example.org/x/",
    )
    (entry,) = yaml.safe_load((large / "large_files.yml").read_text())["large_files"]
    digest = hashlib.sha256((large / "models" / "model.pt").read_bytes()).hexdigest()
    assert entry == {
        "path": "models/model.pt",
        "url": "https://example.org/x/model.pt",
        "hash_val": digest,
        "hash_type": "sha256",
    }


def test_formats_need_weights(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx needs weights"):
        export_bundle("toy", tmp_path / "out", without_weights=True, onnx=True, root=repository)


def test_set_keys_replaces_values_and_keeps_the_rest() -> None:
    text = "# head\na: 1 # one\nb:\n  c: 2\n- no\n\n# about d\nd: [1,\n  2]\ne: 3\n"
    found = set_keys(text, {"a": 5, "b": {"x": [1, 2]}, "d": [3, 4], "absent": 0})
    assert found == "# head\na: 5\nb:\n  x:\n  - 1\n  - 2\n\n# about d\nd: [3, 4]\ne: 3\n"
    assert set_keys(text, {}) == text


def listing(folder: Path, *names: str) -> Path:
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": {str(i): name for i, name in enumerate(names)}}))
    return folder


@pytest.mark.parametrize("name", BUNDLES)
def test_settings_of_a_run_go_along(name: str, tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    block = "common_block: {_target_: common.training.schedules.ramp}"
    overlay.write_text(f"dropout: 0.25\nin_channels: 2\nanswer: 42\n{block}\n")
    data = listing(tmp_path / "data", "background", "tumour", "oedema")
    exported, _ = export_bundle(name, tmp_path / "out", without_weights=True, overlay=[overlay], dataset_dir=data)
    train, inference = (
        yaml.safe_load((exported / f"configs/{file}.yaml").read_text()) for file in ("train", "inference")
    )
    assert train["dropout"] == 0.25 and train["answer"] == 42 and "answer" not in inference
    assert (
        train["num_classes"] == inference["num_classes"] == 3 and train["in_channels"] == inference["in_channels"] == 2
    )
    assert inference["structures"] == ["tumour", "oedema"] and "structures" not in train
    assert train["common_block"]["_target_"] == "scripts._common.training.schedules.ramp"
    assert (exported / "scripts" / "_common" / "training" / "schedules.py").is_file()
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())["network_data_format"]
    assert metadata["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "tumour", "2": "oedema"}
    assert metadata["outputs"]["pred"]["num_channels"] == 3 and metadata["inputs"]["image"]["num_channels"] == 2


@pytest.mark.parametrize(
    ("content", "classes", "words"),
    [
        ("num_classes: 2", None, "--dataset_dir"),
        ("num_classes: 2", 3, "num_classes is 2.*has 3"),
        ("train#trainer#seed: 1", 2, "train#trainer#seed reaches into a block"),
    ],
)
def test_settings_that_do_not_fit(content: str, classes: int | None, words: str, tmp_path: Path) -> None:
    overlay = tmp_path / "own.yaml"
    overlay.write_text(content)
    data = None if classes is None else listing(tmp_path / "data", *"abc"[:classes])
    with pytest.raises(ExportError, match=words):
        export_bundle("alc", tmp_path / "out", without_weights=True, overlay=[overlay], dataset_dir=data)
    assert not (tmp_path / "out").exists()


def test_classes_in_the_form_of_nnunet(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"tumour": 1, "background": 0}}))
    exported, _ = export_bundle("alc", tmp_path / "out", without_weights=True, dataset_dir=tmp_path)
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())
    found = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert found == {"0": "background", "1": "tumour"}


@pytest.mark.parametrize("name", ["$__import__('os').system('false')", "@network", " %metadata.json"])
def test_class_names_that_a_reader_would_run_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": ["background", name]}))
    with pytest.raises(ExportError, match="a config would take what begins with . for code. Fix: rename it"):
        export_bundle("alc", tmp_path / "out", without_weights=True, dataset_dir=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_labels(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"dataset\.json"):
        export_bundle("alc", tmp_path / "out", without_weights=True, dataset_dir=tmp_path)


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_of_this_repository_export(name: str, tmp_path: Path) -> None:
    folder, _ = export_bundle(name, tmp_path, without_weights=True)
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] not in ("common", "bundles"), path
    for path in folder.glob("configs/*.yaml"):
        assert f"bundles/{name}" not in path.read_text(), path
        assert "common." not in path.read_text().replace("scripts._common.", ""), path
    for path in folder.glob("docs/*"):
        if path.suffix in (".md", ".txt"):
            foreign = re.findall(
                r"(?<![\w/])(?:ci|common|tests|bundles)/|repository root|-m (?:ci|common)\.", path.read_text()
            )
            assert foreign == [], path


@pytest.mark.slow
def test_bundles_verify() -> None:
    """Minutes: every bundle trains, infers and exports from an empty folder."""
    done = subprocess.run([sys.executable, ROOT / "ci" / "verify_bundles.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
