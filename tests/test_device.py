"""What the machine is called."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from common import device

X86 = "processor\t: 0\nmodel name\t: Some Processor @ 2.50GHz\nflags\t\t: fpu avx2 avx512_bf16\nmodel name\t: other\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [(X86, "Some Processor @ 2.50GHz", ["fpu", "avx2", "avx512_bf16"]), (ARM, "elsewhere", ["fp", "asimd", "bf16"])],
)
def test_what_linux_says(text: str, name: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    monkeypatch.setattr(platform, "processor", lambda: "elsewhere")
    assert (device.processor_name(), device.processor_flags()) == (name, flags)


def test_where_there_is_no_such_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert (device.processor_name(), device.processor_flags()) == (platform.machine(), [])


def test_a_gpu_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda: "Some GPU")
    assert device.device_name() == "Some GPU"
