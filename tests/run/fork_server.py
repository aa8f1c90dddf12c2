"""Runs of a study in processes of their own, started in milliseconds: a server with everything imported forks one child a run.

`python fork_server.py` is the server; `Forks` is what tests hold of it. A child reports every progress event and every evaluation it takes
as a line of JSON, so that a test can kill it at a chosen moment and knows what was done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from types import TracebackType
from typing import Any

Report = dict[str, Any]


class Forks:
    """The server, as a context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self._waiting: dict[int, deque[Report]] = defaultdict(deque)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def start(self, **request: Any) -> int:
        """Start a run; see `_child` for the keys. Returns its process id."""
        self._send({"start": request})
        return int(self._next(0)["pid"])

    def report(self, pid: int) -> Report:
        """The next report of a run: {"event": …}, {"taken": key}, or at its end {"exit": code} (negative for a signal)."""
        return self._next(pid)

    def finish(self, pid: int) -> list[Report]:
        """Every report of a run up to its end, the last one {"exit": code}."""
        found = [self.report(pid)]
        while "exit" not in found[-1]:
            found.append(self.report(pid))
        return found

    def _send(self, request: Report) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()

    def _next(self, pid: int) -> Report:
        while not self._waiting[pid]:
            assert self._server.stdout is not None
            line = self._server.stdout.readline()
            if not line:
                raise RuntimeError("the fork server is gone")
            report = json.loads(line)
            self._waiting[report.pop("from")].append(report)
        return self._waiting[pid].popleft()


def _serve() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not mix with the reports
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import signal
    import tempfile

    import tiny_study
    import torch

    torch.set_num_threads(1)
    # One whole run before the first fork imports and warms all that a run touches; it leaves no thread behind.
    with tempfile.TemporaryDirectory() as folder:
        tiny_study.run(tiny_study.make(Path(folder)), Path(folder) / "home", searcher="evolve(generations=1,offspring=2,rungs=1x32)")

    def report(sender: int, **about: Any) -> None:
        os.write(out, (json.dumps({"from": sender, **about}) + "\n").encode())

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            report(pid, exit=os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)["start"]
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
            os._exit(_child(request, lambda **about: report(os.getpid(), **about)))
        report(0, pid=pid)


def _child(request: Report, report: Any) -> int:
    """Run a study, and return the exit code.

    Either study (its keys), storage, home and speed; or argv (arguments of the console script), home, out (a file
    for its output) and hold, see `_listener`. With meet (a folder), see `_share`. With halt (the key of an evaluation) the run stands still
    when it has taken that one and before it stores it, so that a kill falls there for certain.
    """
    from dataclasses import asdict

    import evopress.speed
    import evopress.workbench
    from evopress.api import EvopressError
    from evopress.api.study import Study
    from evopress.run import execute

    evopress.speed.REPEATS = 1

    def taken(key: str) -> None:
        report(taken=key)
        if key == request.get("halt"):
            time.sleep(60)
        if "meet" in request:
            (Path(request["meet"]) / str(os.getpid())).touch()

    for name, slopes in (("take", False), ("_take_slopes", True)):
        _tell(evopress.workbench.Workbench, name, slopes, taken)
    if "meet" in request:
        _share(Path(request["meet"]))
    if "argv" in request:
        return _command(request, _listener(request, lambda event: report(event=asdict(event))))
    try:
        execute(
            Study.make(request["study"]), request["storage"], Path(request["home"]), listen=lambda event: report(event=asdict(event)),
            dtype="float32", speed=request.get("speed", False), command="test",
        )  # fmt: skip
    except EvopressError as error:
        report(error=str(error))
        return error.exit_code
    return 0


def _share(folder: Path) -> None:
    """Let two runs share their work for certain: one that has taken an evaluation asks no further question before the other has too.

    Waiting between questions holds no claim, so the other is never held up.
    """
    import evopress.workbench

    measure = evopress.workbench.Workbench.measure

    def patient(bench: Any, *args: Any, **kwargs: Any) -> Any:
        until = time.monotonic() + 60
        while (folder / str(os.getpid())).exists() and len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return measure(bench, *args, **kwargs)

    evopress.workbench.Workbench.measure = patient  # type: ignore[method-assign]


def _tell(workbench: Any, name: str, slopes: bool, taken: Any) -> None:
    """Tell the key of every evaluation once it was taken, before it is stored."""
    take = getattr(workbench, name)

    def told(bench: Any, profile: Any, slice_: Any, fitness: str, role: Any) -> Any:
        trial = take(bench, profile, slice_, fitness, role)
        taken(bench.key(profile, slice_, fitness, slopes).digest)
        return trial

    setattr(workbench, name, told)


def _listener(request: Report, listen: Any) -> Any:
    """The listener; with `hold` it stops at the so-many-th event of the search, so that a signal meets a run that is not finished."""
    left = [request.get("hold", 0)]

    def told(event: Any) -> None:
        listen(event)
        left[0] -= event.phase == "search"
        if left[0] == 0 and event.phase == "search":
            time.sleep(60)

    return told


def _command(request: Report, listen: Any) -> int:
    import evopress.cli
    import evopress.cli.live

    file = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["EVOPRESS_HOME"] = request["home"]
    sys.argv = ["evopress", *request["argv"]]
    evopress.cli.live.plain = lambda *_: listen
    try:
        evopress.cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve()
