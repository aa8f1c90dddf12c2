"""`evopress plugins`: what is installed, what failed to load, and whether it keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import MissingDependency, NotFound, QualityGateFailed
from evopress.cli.options import Json
from evopress.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from evopress.hooks.registry import Plugin, Registry

app = typer.Typer(help="List and check plugins: methods, kernels, fitnesses, searchers.", no_args_is_help=True, rich_markup_mode=None)
SHORT = {"generations": 3, "offspring": 8, "rounds": 2}
"""Options that keep a search short, given to searchers that have them."""


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every plugin with its kind, version, origin and paper, and those that failed to load."""
    from evopress.hooks.registry import Registry

    plugins = Registry.load().plugins
    if as_json:
        print_json([_about(plugin) for plugin in plugins])
        return
    working = sorted((p for p in plugins if not p.error), key=lambda p: p.kind)
    print_table(("name", "kind", "version", "origin", "paper"), [(p.name, p.kind, p.version or None, p.origin, p.paper) for p in working])
    broken = [plugin for plugin in plugins if plugin.error]
    if broken:
        print(f"\n{len(broken)} failed to load; everything else works:")
        print_table(("name", "version", "origin", "error"), [(p.name, p.version or None, p.origin, p.error) for p in broken])


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only the plugins of this name.")] = None,
    as_json: Json = False,
) -> None:
    """Run the shipped conformance checks; exit 6 when a plugin fails one."""
    from evopress.hooks.registry import Registry

    registry = Registry.load()
    chosen = [plugin for plugin in registry.plugins if name is None or plugin.name == name]
    if name is not None and not chosen:
        from evopress.api.errors import unknown

        error = unknown("plugin", name, {plugin.name for plugin in registry.plugins})
        raise NotFound(error.message, error.hint)
    results = []
    for plugin in chosen:
        say(f"checking {plugin.kind or 'plugin'} {plugin.name}")
        results.append((plugin, *_check(plugin, registry)))
    if as_json:
        print_json([{**_about(plugin), "result": result, "detail": detail} for plugin, result, detail in results])
    else:
        print_table(("name", "kind", "result", "detail"), [(p.name, p.kind or None, result, detail) for p, result, detail in results])
    failed = [plugin.name for plugin, result, _ in results if result == "fail"]
    if failed:
        say(f"error: {len(failed)} of {len(results)} plugins failed: {', '.join(failed)}.")
        raise typer.Exit(QualityGateFailed.exit_code)


def _about(plugin: Plugin) -> dict[str, str]:
    return {name: getattr(plugin, name) for name in ("name", "kind", "version", "origin", "paper", "error")}


def _check(plugin: Plugin, registry: Registry) -> tuple[str, str]:
    """(pass, fail or "no check", what was checked or what is wrong) of one plugin."""
    if plugin.error:
        return "fail", f"does not load: {plugin.error}"
    checker = _CHECKS.get(plugin.kind)
    if checker is None:
        return "no check", f"evopress.testing has no check for a {plugin.kind}"
    try:
        return "pass", checker(registry.get(plugin.kind, plugin.name))
    except MissingDependency as missing:  # nothing is wrong with a plugin whose library or device is not here
        return "no check", f"{missing.message} {missing.hint}".strip()
    # A plugin may fail in any way; that is what is being found out, and it must not keep the others from being checked.
    except Exception as error:
        return "fail", str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def _check_method(cls: type[Any]) -> str:
    from evopress.testing.methods import check_method

    return f"{len(check_method(cls()))} levels at made-up sites"


def _check_kernel(cls: type[Any]) -> str:
    import torch

    from evopress.cli.kernels import supported_devices
    from evopress.testing.kernels import check_kernel

    here = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    # One that supports nothing here is asked on the CPU, and says what it lacks.
    devices = [device for device in supported_devices(cls()) if device in here] or ["cpu"]
    return ", ".join(f"{check_kernel(cls(), device=device)} formats and shapes on {device}" for device in devices)


def _check_searcher(cls: type[Any]) -> str:
    from evopress.hooks.registry import searcher_options
    from evopress.testing.searchers import check_searcher

    short: dict[str, Any] = {name: value for name, value in SHORT.items() if name in searcher_options(cls)}
    return f"{check_searcher(cls, **short)} planted problems"


_CHECKS: dict[str, Callable[[type[Any]], str]] = {"method": _check_method, "kernel": _check_kernel, "searcher": _check_searcher}
