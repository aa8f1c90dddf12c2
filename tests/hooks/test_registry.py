"""Plugins come in by entry points; a broken one breaks nothing."""

import importlib.metadata
import subprocess
import sys
import types

import pytest

from evopress.api import UsageError
from evopress.hooks.registry import HOOKS, Registry
from evopress.hooks.specs import hookimpl


def point(name, module, monkeypatch=None, content=None):
    if content is not None:
        made = types.ModuleType(module)
        for key, value in content.items():
            setattr(made, key, value)
        monkeypatch.setitem(sys.modules, module, made)
    return importlib.metadata.EntryPoint(name, module, "evopress")


def test_built_ins_come_in_by_entry_points():
    registry = Registry.load()
    assert {"rtn", "gptq", "magnitude", "sparsegpt", "wanda", "drop"} <= set(registry.classes["method"])
    assert {"kl", "perplexity"} <= set(registry.classes["fitness"])
    assert {"evolve", "uniform", "random", "greedy", "knapsack"} <= set(registry.classes["searcher"])
    assert {"dense", "absent"} <= set(registry.classes["kernel"])
    assert not [plugin for plugin in registry.plugins if plugin.error]
    assert all(plugin.origin.startswith("evopress: ") for plugin in registry.plugins if plugin.kind == "fitness")


def test_a_plugin_that_does_not_import_is_reported_and_breaks_nothing():
    points = [*importlib.metadata.entry_points(group="evopress"), point("broken", "no_such_module_anywhere")]
    registry = Registry.load(points)
    errors = [plugin for plugin in registry.plugins if plugin.error]
    assert [plugin.name for plugin in errors] == ["broken"]
    assert "ModuleNotFoundError" in errors[0].error
    assert "gptq" in registry.classes["method"]


def with_built_ins(*points):
    return Registry.load([*importlib.metadata.entry_points(group="evopress"), *points])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise SystemExit", "SystemExit"),
        ("exit('no licence')", "SystemExit: no licence"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_a_plugin_that_ends_the_process_is_reported_and_breaks_nothing(tmp_path, monkeypatch, code, error, where):
    module = f"planted_{where}_{abs(hash(code))}"
    hook = f"from evopress.hooks.specs import hookimpl\n@hookimpl\ndef evopress_methods():\n    {code}\n    return []\n"
    (tmp_path / f"{module}.py").write_text(code if where == "import" else hook)
    monkeypatch.syspath_prepend(tmp_path)
    registry = with_built_ins(point("rude", module))
    assert [(plugin.name, plugin.error) for plugin in registry.plugins if plugin.error] == [("rude", error)]
    assert registry.classes == with_built_ins().classes


def test_ctrl_c_during_an_import_passes(tmp_path, monkeypatch):
    (tmp_path / "planted_slow.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        with_built_ins(point("slow", "planted_slow"))


@pytest.mark.parametrize(("raised", "error"), [(OSError("no such library"), "OSError: no such library"), (SystemExit(1), "SystemExit: 1")])
def test_a_kernel_that_cannot_be_built_is_reported_and_the_others_run(monkeypatch, raised, error):
    from evopress_kernels.dense import DenseKernel

    class Rude(DenseKernel):
        name = "rude"

        def __init__(self):
            raise raised

    @hookimpl
    def evopress_kernels():
        return [Rude]

    registry = with_built_ins(point("odd", "planted_kernels", monkeypatch, {"evopress_kernels": evopress_kernels}))
    assert [(p.kind, p.name, p.error) for p in registry.plugins if p.error] == [("kernel", "rude", f"Rude() fails: {error}")]
    assert [kernel.name for kernel in registry.kernels()] == [kernel.name for kernel in with_built_ins().kernels()]


@pytest.mark.parametrize("name", ["", None, ["a"], 3])
def test_a_class_without_a_name_is_reported(monkeypatch, name):
    from evopress_drop import Drop

    @hookimpl
    def evopress_methods():
        return [type("Nameless", (Drop,), {"name": name})]

    (found,) = Registry.load([point("odd", "planted_nameless", monkeypatch, {"evopress_methods": evopress_methods})]).plugins
    assert found.error == "Nameless has no name"


def test_classes_that_are_not_what_their_hook_says_are_reported(monkeypatch):
    @hookimpl
    def evopress_methods():
        return [dict]

    registry = Registry.load([point("odd", "planted_odd", monkeypatch, {"evopress_methods": evopress_methods})])
    assert "not a subclass of evopress.api.Method" in registry.plugins[0].error
    assert not registry.classes["method"]


def test_a_name_that_is_taken_is_reported(monkeypatch):
    from evopress_drop import Drop

    @hookimpl
    def evopress_methods():
        return [Drop, Drop]

    registry = Registry.load([point("twice", "planted_twice", monkeypatch, {"evopress_methods": evopress_methods})])
    assert "is taken by" in registry.plugins[1].error


def test_an_unknown_hook_is_reported(monkeypatch):
    @hookimpl
    def evopress_metods():
        return []

    registry = Registry.load([point("typo", "planted_typo", monkeypatch, {"evopress_metods": evopress_metods})])
    assert "evopress_metods" in registry.plugins[0].error


def test_unknown_names_get_the_closest_match():
    with pytest.raises(UsageError, match=r"Unknown method 'gtpq' in study smoke\. Did you mean 'gptq'\?"):
        Registry.load().method("gtpq(bits=3)", "study smoke")


def test_unknown_options_list_the_known_ones():
    with pytest.raises(UsageError, match=r"Unknown option of method gptq 'bit'\. Did you mean 'bits'\?"):
        Registry.load().method("gptq(bit=3)")


def test_importing_every_plugin_imports_no_torch():
    load = "[point.load() for point in importlib.metadata.entry_points(group='evopress')]"
    code = f"import importlib.metadata, sys; {load}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_hook_has_a_base_class():
    from evopress.hooks import specs

    declared = {name for name in dir(specs) if name.startswith("evopress_")}
    assert declared == {hook for hook, _ in HOOKS.values()}
