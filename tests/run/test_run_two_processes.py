"""Two processes on one study: nothing is measured twice, nothing is damaged, and both say what one alone would say."""

from __future__ import annotations

from pathlib import Path

import tiny_study
import torch
from fork_server import Forks
from safetensors import safe_open
from tiny_study import Tiny, Whole

from evopress.store import Store


def test_b12_two_processes_build_one_bank_and_share_one_study(
    tiny: Tiny, whole: Whole, forks: Forks, storage_url: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    meet = tmp_path / "meet"
    meet.mkdir()
    request = {"study": tiny_study.values(tiny), "storage": storage_url, "home": str(home), "speed": True, "meet": str(meet)}
    Store.open(storage_url).close()
    pids = [forks.start(**request) for _ in range(2)]
    reports = [forks.finish(pid) for pid in pids]
    assert [found[-1] for found in reports] == [{"exit": 0}] * 2
    built = [report["event"]["text"] for found in reports for report in found if report.get("event", {}).get("phase") == "bank"]
    assert sorted(built) == sorted(set(built)), "a site was compressed twice"
    taken = [[report["taken"] for report in found if "taken" in report] for found in reports]
    assert all(taken), "one process did everything, so nothing was shared"
    assert sorted(taken[0] + taken[1]) == sorted(whole.contents.trials), "a key was measured twice or never"

    found = tiny_study.contents(storage_url)
    assert (found.trials, found.steps, found.results) == (whole.contents.trials, whole.contents.steps, whole.contents.results)
    assert found.claims == 0
    with Store.open(storage_url) as store:
        assert [run.state for run in store.runs(store.find_study("tiny").id)] == ["finished"] * 2
        timed = [row.run_id for row in store.latencies() if row.profile_id is not None]
        profiles = {row.profile_id for row in store.results()}
        assert len(set(timed)) == 1, "both timed, so each was slow"
        assert len(timed) == 2 * len(profiles), "prefill and decode of every row"

    assert variants(home / "bank") == variants(whole.home / "bank")


def variants(root: Path) -> dict[str, tuple[dict[str, str], dict[str, list[int]]]]:
    """Every file of a bank: what its header says, and its tensors' bytes (the order of header keys is the library's, and random)."""
    found = {}
    for path in root.rglob("*.safetensors"):
        if path.is_file():
            with safe_open(path, "pt") as file:
                found[path.name] = (file.metadata(), {name: file.get_tensor(name).view(torch.uint8).tolist() for name in file.keys()})  # noqa: SIM118
    return found
