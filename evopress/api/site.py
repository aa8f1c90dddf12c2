"""Site: a place in the model that can be compressed.

Found by `evopress.models.sites` from the structure of a model; read by everyone else. No weights live here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SiteKind = Literal["linear", "attention", "mlp", "block", "embedding"]


@dataclass(frozen=True, slots=True)
class Site:
    """One compressible place.

    name: module path, e.g. `model.layers.0.self_attn.q_proj`; one matrix of a stacked expert tensor is `….experts.down_proj[3]`.
    kind: `linear` sites hold a weight matrix; `attention`, `mlp` and `block` contain other sites.
    shape: (rows out, columns in) of the weight of a linear site; (0, 0) for a container.
    depth: index of the transformer block.
    parent: name of the enclosing site, or None. Dropping a parent shadows its children.
    input: name shared by all linear sites that read the same activations (q/k/v; gate/up), so that statistics are shared.
    own_params: parameters a container holds itself, outside its child sites (norms, biases, router); 0 for a linear site.
    """

    name: str
    kind: SiteKind
    shape: tuple[int, int]
    depth: int
    parent: str | None
    input: str = ""
    own_params: int = 0

    @property
    def expert(self) -> bool:
        """Is it one matrix of a stacked expert tensor?"""
        return self.name.endswith("]")

    @property
    def role(self) -> str:
        """Last component of the path without an expert index: `q_proj`."""
        return self.name.rsplit(".", 1)[-1].split("[", 1)[0]

    @property
    def weights(self) -> int:
        """Number of weights of the matrix (0 for a container)."""
        return self.shape[0] * self.shape[1]
