"""Speed studies: what is timed, and what is claimed of it. Kernels on single matrices, or searched profiles as whole models.

Read from a study file with a table `kernels` or `winners`. Not imported by `evopress.api` itself: it needs pydantic. Called by the command
line, `evopress.timing` and `evopress.frontier`; claims are computed in `evopress.report.speed_claims`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evopress.api.errors import UsageError, unknown
from evopress.api.study import Study, read_toml

Comparator = Literal[">=", ">", "<=", "<"]
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
PLAIN = "dense"
KERNEL_METRICS = {"peers": ("of",), "floor": ("of",), "times": ("of", "than"), "table": ()}
FRONTIER_METRICS = {"time": ("of",), "kl": ("of", "than")}
"""What can be claimed of either kind of study, and the keys that such a claim needs."""
_SHAPE = r"[1-9]\d*x[1-9]\d*"


class SpeedClaim(BaseModel):
    """Something a speed study is said to show. of, than: formats of a kernel study, labels of a frontier."""

    model_config = _STRICT

    says: Annotated[str, Field(min_length=1, description="the claim in words")]
    metric: Annotated[
        Literal["peers", "floor", "times", "table", "time", "kl"],
        Field(
            description="peers: times as fast as the fastest other kernel; floor: share of what the machine can do; times: how many times "
            "as fast as format `than`; table: median error of the table's sums; time: share of the dense model's; kl: difference from the "
            "best of `than` that keeps the same time"
        ),
    ]
    of: Annotated[str, Field(description="format or label that is judged")] = ""
    than: Annotated[str, Field(description="format, or kind of row (uniform, size), it is compared with")] = ""
    comparator: Annotated[Comparator, Field(description=">=, >, <= or <")]
    goal: Annotated[float, Field(description="what the value is compared with")]
    within: Annotated[float | None, Field(gt=0, description="kl only: the time that both keep, as a share of the dense model's")] = None


class KernelStudy(BaseModel):
    """Our kernels and all others on single matrices, weights read from memory; and the table's sums against whole models."""

    model_config = _STRICT

    name: str
    shapes: Annotated[tuple[Annotated[str, Field(pattern=f"^{_SHAPE}$")], ...], Field(min_length=1)]
    formats: Annotated[tuple[str, ...], Field(min_length=1)]
    tokens: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    workload: Annotated[str, Field(description="of the whole models")] = "decode"
    model: str = ""
    table_formats: Annotated[tuple[str, ...], Field(description="formats of the whole models")] = ()
    profiles: Annotated[int, Field(ge=0, description="random whole models that the table's sums are compared with")] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    claims: tuple[SpeedClaim, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of everything but name and claims, hexadecimal."""
        return _digest(self.model_dump(mode="json", exclude={"name", "claims"}))


class FrontierStudy(BaseModel):
    """Searches under several budgets on one bank, every uniform choice beside them, all timed in turns as whole models."""

    model_config = _STRICT

    study: Study
    winners: Annotated[dict[str, tuple[str, ...]], Field(min_length=1, description="label = the budgets of its search")]
    claims: tuple[SpeedClaim, ...] = ()

    @property
    def name(self) -> str:
        """The study's."""
        return self.study.name

    @property
    def digest(self) -> str:
        """SHA-256 of the study's identity and the winners, hexadecimal."""
        identity = {key: value for key, value in self.study.identity.items() if key not in ("budgets", "baselines")}
        return _digest({**identity, "winners": {label: list(budgets) for label, budgets in self.winners.items()}})


SpeedStudy = KernelStudy | FrontierStudy


def read_speed_study(path: Path) -> SpeedStudy | None:
    """The speed study of a TOML file; None where it has neither a table `kernels` nor `winners`. Raises NotFound and UsageError."""
    values = read_toml(path)
    if "kernels" not in values and "winners" not in values:
        return None
    claims = _claims(values.pop("claims", []), path)
    try:
        if "kernels" in values:
            for key in values.keys() - {"name", "kernels"}:
                raise unknown("key", key, ("name", "kernels", "claims"), str(path))
            table = _table(values["kernels"], "kernels", path)
            own = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
            kernels = KernelStudy.model_validate({"name": values.get("name"), "claims": claims, **own})
            _check_claims(claims, KERNEL_METRICS, {*kernels.formats, PLAIN}, {*kernels.formats, PLAIN}, path)
            return kernels
        table = _table(values.pop("winners"), "winners", path)
        if "budgets" in values:
            raise UsageError(f"{path} has budgets beside [winners].", 'Each winner names its own: label = "latency=0.8x".')
        winners = {label: (budgets,) if isinstance(budgets, str) else _texts(budgets, label, path) for label, budgets in table.items()}
        if "dense" in winners or any(label.startswith("uniform") for label in winners):
            raise UsageError(f"A winner of {path} is called dense or uniform.", "Those rows are there anyway; give it another name.")
        study = Study.make({**values, "budgets": next(iter(winners.values()))}, str(path))
        _check_claims(claims, FRONTIER_METRICS, set(winners), {"uniform", "size", "latency"}, path)
        return FrontierStudy(study=study, winners=winners, claims=claims)
    except ValidationError as error:
        raise _refused(error, str(path)) from error


def _check_claims(claims: Sequence[SpeedClaim], metrics: Mapping[str, Sequence[str]], of: set[str], than: set[str], path: Path) -> None:
    """Refuse a claim on what the study does not measure, or a comparison of KL without a time that both keep.

    metrics: of such a study, with the keys that each needs.
    """
    for number, claim in enumerate(claims, 1):
        where = f"claim {number} of {path}"
        if claim.metric not in metrics:
            raise unknown("metric", claim.metric, metrics, where)
        for key in metrics[claim.metric]:
            if not getattr(claim, key):
                raise UsageError(f"The claim on {claim.metric} has no {key!r}: {where}.", f'Write {key} = "…".')
        if claim.of and claim.of not in of:
            raise unknown("name", claim.of, of, f"'of' in {where}")
        if claim.than and claim.than not in than:
            raise unknown("name", claim.than, than, f"'than' in {where}")
        if claim.metric == "kl" and claim.within is None:
            raise UsageError(f"Claim on kl without a time: {where}.", "Write within = 0.8, a share of the dense model's time.")


def _table(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UsageError(f"Key {name!r} in {path} is no table with entries.", "See studies/README.md.")
    return value


def _texts(value: Any, label: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UsageError(f"The budgets of winner {label!r} in {path} are {value!r}.", 'Write one, "latency=0.8x", or a list of them.')
    return tuple(value)


def _claims(value: Any, path: Path) -> tuple[SpeedClaim, ...]:
    if not isinstance(value, list):
        raise UsageError(f"Claims in {path} are {value!r}.", "Write each as a table [[claims]].")
    return tuple(_claim(item, f"claim {number} of {path}") for number, item in enumerate(value, 1))


def _claim(item: Any, where: str) -> SpeedClaim:
    try:
        return SpeedClaim.model_validate(item)
    except ValidationError as error:
        raise _refused(error, where) from error


def _refused(error: ValidationError, where: str) -> UsageError:
    first = error.errors()[0]
    key, reason = ".".join(str(part) for part in first["loc"]), first["msg"][:1].lower() + first["msg"][1:]
    return UsageError(f"Key {key!r} in {where} is {first['input']!r}, which is not allowed: {reason}.", "See studies/README.md.")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
