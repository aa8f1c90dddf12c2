"""The registry: finds plugins through entry points and single files, and answers "which methods are there?".

Built-ins come in by the same entry points as strangers. A plugin that fails to import or to answer a hook, that ends the process there, or
whose kernel cannot be built, is kept as an error and breaks nothing else. Called by the run and the command line.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import pluggy

from evopress.api import Fitness, Kernel, Method, Searcher, UsageError, parse_method, unknown
from evopress.hooks import specs

GROUP = "evopress"
FAILURES = (Exception, SystemExit)
"""What a stranger's code may raise without taking the tool down. Ctrl-C is not among it: that is the user's word."""
HOOKS: dict[str, tuple[str, type]] = {
    "method": ("evopress_methods", Method),
    "kernel": ("evopress_kernels", Kernel),
    "fitness": ("evopress_fitnesses", Fitness),
    "searcher": ("evopress_searchers", Searcher),
}


@dataclass(frozen=True)
class Plugin:
    """One entry of `plugins list`. error is empty for a plugin that works; kind and name are empty for one that does not import."""

    kind: str
    name: str
    version: str
    origin: str
    paper: str = ""
    error: str = ""


@dataclass(frozen=True)
class Registry:
    """What is installed, by kind and name. Build it with `Registry.load`."""

    classes: Mapping[str, Mapping[str, type[Any]]]
    plugins: tuple[Plugin, ...] = field(default=())

    @staticmethod
    def load(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
        """Import every entry point of group `evopress` and collect what its hooks return."""
        classes: dict[str, dict[str, type[Any]]] = {kind: {} for kind in HOOKS}
        plugins: list[Plugin] = []
        points = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        for point in sorted(points, key=lambda p: (p.dist is None or p.dist.name != "evopress", p.name)):
            origin = f"{point.dist.name if point.dist else 'unpackaged'}: {point.value}"
            version = point.dist.version if point.dist else ""
            try:
                module = point.load()
                found = _collect(module)
            except FAILURES as error:
                plugins.append(Plugin("", point.name, version, origin, error=_shown(error)))
                continue
            for kind, cls in found:
                problem = _problem(kind, cls)
                if not problem and cls.name in classes[kind]:
                    problem = f"the name is taken by {classes[kind][cls.name].__module__}"
                if not problem:
                    classes[kind][cls.name] = cls
                name, paper = (str(getattr(cls, key, "")) for key in ("name", "paper"))
                plugins.append(Plugin(kind, name or str(getattr(cls, "__name__", cls)), version, origin, paper, problem))
        return Registry(classes, tuple(plugins))

    def get(self, kind: str, name: str, where: str = "") -> type[Any]:
        """The class of that kind and name. Raises UsageError with the closest match and the list."""
        known = self.classes[kind]
        if name in known:
            return known[name]
        error = unknown(kind, name, known, where)
        broken = [plugin for plugin in self.plugins if plugin.error and name in (plugin.name, plugin.origin)]
        if broken:
            raise UsageError(f"{error.message} A plugin of that name failed to load: {broken[0].error}.", error.hint)
        raise error

    def method(self, specification: str, where: str = "") -> Method:
        """Build a method from `gptq(bits=2..5,group=64)`. Raises UsageError for unknown names, options and values."""
        name, options = parse_method(specification)
        cls: type[Method] = self.get("method", name, where)
        check_options("method", name, options, [item.name for item in fields(cls)] if is_dataclass(cls) else [])
        return cls(**options)

    def kernels(self) -> list[Kernel]:
        """One instance of every kernel."""
        return [cls() for cls in self.classes["kernel"].values()]


def searcher_options(cls: type[Any]) -> list[str]:
    """Option names of a searcher: the keyword arguments of its constructor."""
    return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "problem", "rng")]


def check_options(kind: str, name: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UsageError for the first option that is not known."""
    allowed = list(known)
    for key in options:
        if key not in allowed:
            raise unknown(f"option of {kind} {name}", key, allowed)


def _collect(module: Any) -> list[tuple[str, type[Any]]]:
    manager = pluggy.PluginManager("evopress")
    manager.add_hookspecs(specs)
    manager.register(module)
    manager.check_pending()
    return [(kind, cls) for kind, (hook, _) in HOOKS.items() for answer in getattr(manager.hook, hook)() for cls in answer]


def _problem(kind: str, cls: Any) -> str:
    base = HOOKS[kind][1]
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"{cls!r} is not a subclass of evopress.api.{base.__name__}"
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        return f"{cls.__name__} does not implement {', '.join(missing)}"
    name = getattr(cls, "name", "")
    if not (name and isinstance(name, str)):
        return f"{cls.__name__} has no name"
    if kind != "kernel":  # the others are built with options, by those who chose them
        return ""
    try:
        cls()
    except FAILURES as error:
        return f"{cls.__name__}() fails: {_shown(error)}"
    return ""


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
