"""Second moments and the optimal-brain-surgeon sweep that GPTQ and SparseGPT share.

Both papers compress a weight column by column and move the error of each column to the columns after it; they differ only in what a column
becomes. Knows nothing of grids or masks. Called by method plugins.

Shapes: R rows out, C columns in, L levels, B columns of a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evopress.api.errors import NumericalError, UsageError
from evopress.api.site import Site
from evopress.api.variant import Statistics

if TYPE_CHECKING:
    from torch import Tensor

MAX_DAMP = 1.0
"""Damping stops here, as a share of the mean diagonal: a matrix that is still not positive definite is no second moment."""
LEAF = 32
"""Columns that are updated one by one; wider spans are halved and updated with one matrix product."""


def check_weight(method: str, site: Site, weight_RC: Tensor) -> None:
    """Raise NumericalError when the weight holds NaN or infinity, UsageError when its shape is not the site's."""
    if tuple(weight_RC.shape) != site.shape:
        raise UsageError(
            f"Method {method!r} got a weight of shape {tuple(weight_RC.shape)} at {site.name!r}.", f"Its shape is {site.shape}."
        )
    if not bool(weight_RC.isfinite().all()):
        raise NumericalError(f"The weight of {site.name!r} holds NaN or infinity, so method {method!r} cannot compress it.",
                             "Check the model file.")  # fmt: skip


def second_moment(method: str, site: Site, stats: Statistics) -> Tensor:
    """The C×C second moment of the input. Raises UsageError when it is missing or misshapen, NumericalError when not finite."""
    hessian_CC = stats.second_moment
    columns = site.shape[1]
    if hessian_CC is None:
        raise UsageError(f"Method {method!r} needs the second moment of the input of {site.name!r}, and got none.",
                         "A method is handed what it names in `needs`.")  # fmt: skip
    if tuple(hessian_CC.shape) != (columns, columns):
        raise UsageError(f"The second moment for {site.name!r} has shape {tuple(hessian_CC.shape)}.", f"It must be {columns}×{columns}.")
    if not bool(hessian_CC.isfinite().all()):
        raise NumericalError(
            f"The second moment of the input of {site.name!r} holds NaN or infinity.", "Check the calibration text and model."
        )
    return hessian_CC


def dead_columns(hessian_CC: Tensor) -> Tensor:
    """Mask of the inputs that were always zero: their weights do not matter, and the papers set them to zero."""
    return hessian_CC.diagonal() <= 0


def inverse_factor(hessian_CC: Tensor, damp: float, name: str) -> Tensor:
    """Upper triangular U with H⁻¹ = UᵀU for the damped H, as GPTQ (2210.17323, step 3) and SparseGPT (2301.00774) use it.

    damp: share of the mean diagonal of the live columns that is added to the diagonal; where H is not positive definite it is raised by
    tens up to MAX_DAMP. Computed in float64: with J the reversal, JHJ = LLᵀ gives H = MMᵀ for the upper triangular M = JLJ, so U = M⁻¹ and
    no inverse of H is formed. Dead columns stand apart with the mean diagonal. Raises NumericalError naming the site.
    """
    import torch

    dead_C = dead_columns(hessian_CC)
    damped_CC = hessian_CC.double().clone()
    damped_CC[dead_C], damped_CC[:, dead_C] = 0, 0
    diagonal_C = damped_CC.diagonal()
    mean = diagonal_C[~dead_C].mean() if not bool(dead_C.all()) else diagonal_C.new_ones(())
    diagonal_C[dead_C] = mean
    eye_CC = torch.eye(len(diagonal_C), dtype=torch.float64)
    share, added = damp, 0.0
    while share <= MAX_DAMP:
        diagonal_C += (share - added) * mean
        lower_CC, failed = torch.linalg.cholesky_ex(damped_CC.flip(0, 1))
        if not int(failed):
            factor_CC: Tensor = torch.linalg.solve_triangular(lower_CC.flip(0, 1), eye_CC, upper=True)
            return factor_CC.to(hessian_CC.dtype)
        share, added = max(10 * share, 1e-6), share
    raise NumericalError(
        f"The second moment of the input of {name!r} is not positive definite, even with {added:g} of its mean diagonal added.",
        "Check the calibration text and model for damage.",
    )


def sweep(
    work_LCR: Tensor,
    factor_CC: Tensor,
    unit: int,
    begin: Callable[[int, Tensor], None],
    settle: Callable[[int, Tensor], Tensor],
) -> None:
    """Compress column after column; each error e = (w - ŵ)/U_ii goes to the later columns as w_j -= U_ij e. Overwrites `work_LCR`.

    begin(start, columns_LBR) is called at each multiple of `unit`, when its `unit` columns hold all earlier errors. settle(column, w_LR)
    returns ŵ_LR. Columns are the middle dimension, so that one column of a level is contiguous, and levels never mix, so that a level's
    result does not depend on which others are swept with it. Departure from the papers: they update blocks of 128 columns lazily; here
    spans are halved recursively, which does the same arithmetic with larger matrix products.
    """
    diagonal = factor_CC.diagonal().tolist()

    def leaf(low: int, high: int) -> None:
        for column in range(low, high):
            if column % unit == 0:
                begin(column, work_LCR[:, column : column + unit])
            weight_LR = work_LCR[:, column]
            error_LR = (weight_LR - settle(column, weight_LR)).div_(diagonal[column])
            weight_LR.copy_(error_LR)
            if column + 1 < high:
                work_LCR[:, column + 1 : high].addcmul_(factor_CC[column, column + 1 : high, None], error_LR[:, None], value=-1)

    def span(low: int, high: int) -> None:
        width = high - low
        if width <= LEAF:
            leaf(low, high)
            return
        # A unit must start where everything before it has been applied, so spans wider than a unit are cut between units.
        grain = unit if width > unit else 1
        middle = low + max(width // 2 // grain, 1) * grain
        span(low, middle)
        coupling = factor_CC[low:middle, middle:high].T
        for level_CR in work_LCR:
            level_CR[middle:high].addmm_(coupling, level_CR[low:middle], alpha=-1)
        span(middle, high)

    span(0, work_LCR.shape[1])
