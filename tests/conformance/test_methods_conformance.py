"""Every built-in method passes the shipped conformance check, and the check catches methods that are wrong in one way each."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from evopress_drop import Drop
from evopress_gptq import Gptq
from evopress_magnitude import Magnitude
from evopress_rtn import Rtn
from evopress_sparsegpt import SparseGpt
from evopress_wanda import Wanda

from evopress.api import Cost, Level, Method, UsageError, Variant
from evopress.api.linalg import second_moment
from evopress.testing.methods import check_method

METHODS: dict[str, Method] = {
    "rtn": Rtn(),
    "rtn group 16": Rtn(bits=(2, 3, 7), group=16),
    "rtn row": Rtn(bits=(2, 4), group=-1),
    "gptq": Gptq(),
    "gptq group 16": Gptq(bits=(2, 3, 8), group=16),
    "gptq row": Gptq(bits=(2, 3, 4), group=-1),
    "gptq act order": Gptq(bits=(2, 3, 4), group=16, act_order=True, damp=0.05),
    "magnitude": Magnitude(),
    "magnitude steps": Magnitude(sparsity=0.5, steps=3, step_weights=50),
    "sparsegpt": SparseGpt(),
    "sparsegpt steps": SparseGpt(sparsity=0.5, steps=3, step_weights=50, block=16),
    "wanda": Wanda(),
    "wanda steps": Wanda(sparsity=(0.4, 0.6), steps=2, step_weights=37),
    "drop": Drop(),
    "drop mlp": Drop(kinds="mlp"),
}


@pytest.mark.parametrize("name", METHODS)
def test_builtin_methods_conform(name: str) -> None:
    assert check_method(METHODS[name])


@pytest.mark.parametrize("method", [Gptq(), Gptq(act_order=True), SparseGpt()], ids=["gptq", "gptq act order", "sparsegpt"])
def test_solvers_give_the_same_alone_as_together_at_real_widths(method: Method) -> None:
    check_method(method, shapes=((96, 576), (67, 576)))


def _broken(**wrong: Any) -> Method:
    """Magnitude at two sparsities, with some methods replaced."""

    def wrap(name: str) -> Any:
        return lambda self, *args: wrong[name](Magnitude(sparsity=(0.25, 0.5)), *args)

    namespace = {"__module__": __name__, "name": "magnitude", **{name: wrap(name) for name in wrong if name != "name"}}
    namespace |= {"__annotations__": {"name": ClassVar[str]}}
    cls = dataclasses.dataclass(frozen=True)(type("Broken", (Magnitude,), namespace))
    return cls(sparsity=(0.25, 0.5))


def _spoil_weight(real: Method, site: Any, weight: Any, stats: Any, levels: Any) -> Any:
    variants = list(real.compress(site, weight, stats, levels))
    weight[0, 0] += 1
    return iter(variants)


def _random(real: Method, site: Any, weight: Any, stats: Any, levels: Any) -> Any:
    torch.rand(1)
    return real.compress(site, weight, stats, levels)


def _spoil(change: Any) -> Any:
    def compress(real: Method, site: Any, weight: Any, stats: Any, levels: Any) -> Any:
        for variant in real.compress(site, weight, stats, levels):
            yield change(variant, levels)

    return compress


def _poison(variant: Variant, levels: Any) -> Variant:
    values = variant.tensors["values"].clone()
    values[:1] = float("nan")
    return dataclasses.replace(variant, tensors={**variant.tensors, "values": values})


def _company(variant: Variant, levels: Any) -> Variant:
    return dataclasses.replace(variant, tensors={**variant.tensors, "values": variant.tensors["values"] * len(levels)})


def _swapped(real: Method, site: Any, weight: Any, stats: Any, levels: Any) -> Any:
    for variant in real.compress(site, weight, stats, levels):
        scale = 1.0 if variant.level.option("sparsity") == 0.5 else 0.0
        yield dataclasses.replace(variant, tensors={**variant.tensors, "values": variant.tensors["values"] * scale})


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"levels": lambda real, site: list(real.levels(site)) * 2}, "offers a level twice"),
        ({"levels": lambda real, site: [Level.of("magnitude", sparsity="0.5 ")]}, "does not survive printing"),
        ({"levels": lambda real, site: [Level.of("other", sparsity=0.5)]}, "the name of another method"),
        ({"levels": lambda real, site: []}, "offers no level at any site"),
        ({"cost": lambda real, site, level: real.cost(site, level) + Cost(1, 0)}, "promised Cost"),
        ({"compress": _spoil_weight}, "changed the weight"),
        ({"compress": _random}, "global random generator"),
        ({"compress": lambda real, s, w, st, lv: reversed(list(real.compress(s, w, st, lv)))}, "and yielded"),
        ({"compress": _spoil(_poison)}, "NaN or infinity"),
        ({"compress": _spoil(_company)}, "than when asked for all levels at once"),
        ({"compress": _swapped}, "has the larger layer error"),
        ({"compress": _spoil(lambda v, lv: dataclasses.replace(v, tensors={**v.tensors, "extra": torch.zeros(1)}))}, "the tensors take"),
    ],
)
def test_conformance_check_catches(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_method(_broken(**wrong))


def test_a_method_is_handed_only_the_statistics_it_names() -> None:
    def reads(real: Method, site: Any, weight: Any, stats: Any, levels: Any) -> Any:
        second_moment("magnitude", site, stats)
        return real.compress(site, weight, stats, levels)

    silent = _broken(compress=reads)
    with pytest.raises(UsageError, match="A method is handed what it names in `needs`"):
        check_method(silent)
    type(silent).needs = frozenset({"second_moment"})
    assert check_method(silent)
