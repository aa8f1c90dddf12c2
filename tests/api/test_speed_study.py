"""Speed studies as files: which is which, what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from evopress.api import UsageError
from evopress.api.speed_study import FrontierStudy, KernelStudy, read_speed_study

ROOT = Path(__file__).resolve().parents[2]
CLAIM = '[[claims]]\nsays = "x"\nmetric = "time"\nof = "fast"\ncomparator = "<="\ngoal = 1\n'


def read(tmp_path: Path, text: str) -> KernelStudy | FrontierStudy | None:
    file = tmp_path / "speedy.toml"
    file.write_text(text)
    return read_speed_study(file)


def test_the_tables_tell_the_kinds_apart(tmp_path: Path) -> None:
    assert read(tmp_path, "seed = 1") is None
    kernels = read(tmp_path, '[kernels]\nshapes = ["16x64"]\nformats = ["int4-g64"]')
    assert isinstance(kernels, KernelStudy)
    assert (kernels.name, kernels.shapes, kernels.tokens, kernels.profiles) == ("speedy", ("16x64",), (1,), 20)
    found = read(tmp_path, f'seed = 3\n[winners]\nfast = "latency=0.8x"\nsmall = ["size=0.5x", "latency=0.9x"]\n{CLAIM}')
    assert isinstance(found, FrontierStudy)
    assert found.winners == {"fast": ("latency=0.8x",), "small": ("size=0.5x", "latency=0.9x")}
    assert (found.study.seed, found.claims[0].goal) == (3, 1.0)


def test_the_digest_is_of_what_is_measured_not_of_what_is_claimed(tmp_path: Path) -> None:
    plain = '[winners]\nfast = "latency=0.8x"\n'
    one, other = read(tmp_path, plain), read(tmp_path, plain + CLAIM)
    changed = read(tmp_path, plain.replace("0.8x", "0.7x"))
    assert one is not None and other is not None and changed is not None  # noqa: PT018
    assert one.digest == other.digest != changed.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[kernels]\nshapes = ["16"]\nformats = ["int4-g64"]', r"Key 'shapes.0' in .*speedy.toml is '16'"),
        ('[kernels]\nshapes = ["16x64"]\nformats = []', "Key 'formats'"),
        ('[kernels]\nshapes = ["16x64"]\nformats = ["dense"]\nwidth = 3', "Key 'width'"),
        ('seed = 1\n[kernels]\nshapes = ["16x64"]\nformats = ["dense"]', "Unknown key 'seed'"),
        ('colour = 1\n[winners]\nfast = "latency=0.8x"', "Unknown key 'colour'"),
        ('[winners]\nfast = "latency=0.8x"\n' + CLAIM.replace('"time"', '"taste"'), "Key 'metric' in claim 1 of"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("name", ["kernels-cpu", "search-latency"])
def test_the_studies_of_the_project_are_read_and_claim_something(name: str) -> None:
    study = read_speed_study(ROOT / "studies" / f"{name}.toml")
    assert study is not None
    assert study.name == name
    assert study.claims
