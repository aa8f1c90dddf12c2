"""A tiny Llama on a planted clock: every matrix takes what a table says, or a multiple by its format.

Attention, mlp, block and the rest take what is planted. Not a fixture file: tests write `from planted_model import …`. Time passes only
inside the modules, so sums over a whole model are exact.
"""

from __future__ import annotations

import tiny
import torch

from evopress.api import DENSE
from evopress.api.formats import decode
from evopress.api.workload import Workload
from evopress.latency.mixed import cells_of
from evopress.latency.runtime import HEAD
from evopress.latency.table import Cell, Factor, LatencyTable, Measured, Part
from evopress.models.sites import find_sites

DECODE, PREFILL = Workload("decode", 2, 8), Workload("prefill", 1, 8)
FORMATS = ("dense", "int4-g16", "int8-g32", "bitmask@0.5")
"""The second and third do not fit every matrix: 48 columns are no multiple of 32."""
PARTS = {"attention": 3.0, "mlp": 5.0, "block": 7.0, "model": 11.0}
HOOKED = {"self_attn.q_proj": "attention", "mlp.up_proj": "mlp", "input_layernorm": "block", "lm_head": "model"}
"""End of a module's name -> the part whose seconds pass in it; each runs if and only if the part does."""
SHAPES = ((16, 32), (32, 32), (32, 48), (48, 32))


def measured(seconds, kernel="planted"):
    return Measured(kernel, seconds, seconds, seconds, 7)


def table(workload=DECODE, formats=FORMATS):
    """Whole seconds, another number for every format and shape; a slower kernel beside each."""
    cells = {}
    for place, shape in enumerate(SHAPES):
        for number, format in enumerate(formats):
            seconds = 20.0 + 4 * place + number
            cells[Cell(format, shape, workload.tokens)] = (measured(seconds + 100, "slow"), measured(seconds))
    parts = {Part("digest", kind, workload): measured(seconds) for kind, seconds in PARTS.items()}
    return LatencyTable(cells, parts, factors(dict.fromkeys(formats, 1.0), workload), "a planted machine", "float32")


def factors(values, workload=DECODE, kernel="planted"):
    """Of formats within the planted model, as that kernel ran them at every shape."""
    return {Part("digest", format, workload): Factor(value, dict.fromkeys(SHAPES, (kernel, ""))) for format, value in values.items()}


class PlantedKernel:
    """Multiplies by the decoded weight, and lets the seconds of its cell pass."""

    name, packed = "planted", True

    def __init__(self, model):
        self.model = model

    def pack(self, variant, dtype):
        format = "dense" if variant.level == DENSE else str(variant.level.option("format"))
        return {"weight": decode(variant.format, variant.tensors, variant.site.shape), "format": torch.tensor(list(format.encode()))}

    def run(self, x, packed):
        self.model.pass_seconds(bytes(packed["format"].tolist()).decode(), tuple(packed["weight"].shape))
        return x @ packed["weight"].T


class PlainModule:
    """What keeps the head as it is."""

    name = "dense"


class PlantedModel:
    """model, sites: of two blocks. Calling it tells the time."""

    def __init__(self, workload=DECODE, factors=()):
        self.model = tiny.build("llama", num_hidden_layers=2)
        self.sites = find_sites(self.model).sites
        self.table, self.tokens, self.now, self.factors = table(workload), workload.tokens, 0.0, dict(factors)
        for name, module in self.model.named_modules():
            part = next((part for end, part in HOOKED.items() if name.endswith(end)), None)
            if part:
                module.register_forward_hook(lambda *_, part=part: self.wait(PARTS[part]))

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds

    def pass_seconds(self, format, shape):
        self.wait(self.cell_seconds(Cell(format, shape, self.tokens)))

    def pick(self, variant, dtype):
        return PlantedKernel(self) if variant.site.name != HEAD else PlainModule()

    def seconds(self, profile):
        """What a pass takes, summed by hand."""
        kept = [site.kind for site in self.sites if site.kind != "linear" and profile[site.name] == DENSE]
        return PARTS["model"] + sum(PARTS[kind] for kind in kept) + sum(map(self.cell_seconds, self.cells(profile)))

    def cells(self, profile):
        return cells_of(profile, self.sites, self.tokens).values()

    def cell_seconds(self, cell):
        """What a matrix takes here: what its cell says, times what is planted for its format."""
        return self.table.best(cell).median * self.factors.get(cell.format, 1.0)
