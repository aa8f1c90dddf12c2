"""What the bank makes of statistics."""

from pathlib import Path

import torch
from evopress_gptq import Gptq

from evopress.api import Site, Statistics
from evopress.bank.bank import Bank
from evopress.bank.build import Task, build

SITE = Site("model.layers.0.mlp.experts.down_proj[3]", "linear", (16, 64), 0, None)


def test_an_expert_without_calibration_tokens_is_compressed_and_not_emptied(tmp_path: Path) -> None:
    method = Gptq(bits=(3,), group=32)
    level = method.levels(SITE)[0]
    bank, key = Bank(tmp_path), "ab" * 32
    weight_RC = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    silent = Statistics(torch.zeros(64, 64), 0)
    build([Task(SITE, level, method, key)], bank, lambda _: iter([(0, {SITE.name: silent})]), lambda _: weight_RC, lambda *_: None)
    assert 0.001 < bank.error(key) < 0.2
