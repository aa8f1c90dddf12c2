"""Every hook of evopress on one screen. Each takes no argument and returns an iterable of classes.

A plugin is a module named by an entry point in group `evopress`:

    from evopress.hooks.specs import hookimpl

    @hookimpl
    def evopress_methods():
        return [MyMethod]
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from evopress.api import Fitness, Kernel, Method, Searcher

hookspec = pluggy.HookspecMarker("evopress")
hookimpl = pluggy.HookimplMarker("evopress")


@hookspec
def evopress_methods() -> Iterable[type[Method]]:  # type: ignore[empty-body]
    """Compression methods."""


@hookspec
def evopress_kernels() -> Iterable[type[Kernel]]:  # type: ignore[empty-body]
    """Kernels that run packed weights."""


@hookspec
def evopress_fitnesses() -> Iterable[type[Fitness]]:  # type: ignore[empty-body]
    """Ways to score a model."""


@hookspec
def evopress_searchers() -> Iterable[type[Searcher]]:  # type: ignore[empty-body]
    """Search algorithms."""
