"""Which stored times may stand side by side."""

from evopress.speed import common_run
from evopress.store import LatencyRow


def row(run_id: int, phase: str, speed: float) -> LatencyRow:
    return LatencyRow("dense", "cpu", phase, 1, 64, 1, 7, 64 / speed, 64 / speed, 64 / speed, speed, run_id=run_id)


def both(run_id: int, speed: float) -> list[LatencyRow]:
    return [row(run_id, "prefill", speed), row(run_id, "decode", speed)]


def test_speeds_of_different_runs_are_never_compared() -> None:
    # Run 2 timed the dense model again, on a busy machine and beside another winner: its dense time must not meet run 1's winner.
    rows = {"dense": [*both(1, 20.0), *both(2, 5.0)], "winner": both(1, 36.0)}
    found = common_run(rows)
    assert found is not None
    assert {label: phases["decode"].tokens_per_second for label, phases in found.items()} == {"dense": 20.0, "winner": 36.0}


def test_the_latest_whole_run_counts() -> None:
    found = common_run({"dense": [*both(1, 20.0), *both(3, 21.0)], "winner": [*both(1, 36.0), *both(3, 37.0)]})
    assert found is not None
    assert found["winner"]["decode"].tokens_per_second == 37.0


def test_no_whole_run_means_measuring_again() -> None:
    assert common_run({"dense": both(1, 20.0), "winner": both(2, 36.0)}) is None
    assert common_run({"dense": both(1, 20.0), "winner": [row(1, "decode", 36.0)]}) is None
