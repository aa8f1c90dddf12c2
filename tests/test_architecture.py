"""The rules of the code base that a machine can check: who imports whom, what is heavy at import, and how files are written.

Reads source with `ast`; imports nothing of the package except in a fresh interpreter, to see what `evopress --help` loads.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = (ROOT / "evopress", ROOT / "plugins", ROOT / "kernels")
HARD_LINES = 450
"""DESIGN asks for mostly under 400; nothing may pass this."""

When = Literal["import", "call", "typing"]
"""import: when the module is loaded. call: inside a function. typing: under TYPE_CHECKING, never executed."""

# The arrows -----------------------------------------------------------------------------------------------------------------------------

PARTS: Mapping[str, frozenset[str]] = {
    "api": frozenset(),
    "events": frozenset(),
    "home": frozenset(),
    "files": frozenset(),
    "hooks": frozenset({"api"}),
    "models": frozenset({"api"}),
    "data": frozenset({"api"}),
    "bank": frozenset({"api", "files"}),
    "store": frozenset({"api", "home"}),
    "search": frozenset({"api", "hooks"}),
    "fitness": frozenset({"api", "hooks", "store"}),
    "latency": frozenset({"api", "models"}),
    "testing": frozenset({"api", "latency", "hooks"}),
    "export": frozenset({"api", "hooks", "models", "bank"}),
    "executors": frozenset({"api", "events"}),
    "plan": frozenset({"api", "hooks", "latency", "models", "pricing"}),
    "precision": frozenset({"api", "latency", "models"}),
    "pricing": frozenset({"api", "latency", "precision", "store"}),
    "timing": frozenset({"api", "latency", "models", "precision", "pricing", "provenance", "store", "testing"}),
    "texts": frozenset({"api", "data", "events", "models", "plan"}),
    "rehearsal": frozenset({"api", "data", "hooks", "plan", "texts"}),
    "workbench": frozenset({"api", "bank", "data", "events", "fitness", "hooks", "models", "plan", "precision", "store", "texts"}),
    "knowledge": frozenset({"api", "bank", "data", "events", "models", "workbench"}),
    "memory": frozenset({"api", "data", "events", "store", "workbench"}),
    "throughput": frozenset({"api", "events", "fitness", "hooks", "latency", "plan", "precision", "pricing", "provenance", "search",
                             "store", "texts", "workbench"}),
    "recording": frozenset({"api", "latency", "provenance", "workbench"}),
    "gate": frozenset({"api", "workbench"}),
    "frontier": frozenset({"api", "events", "hooks", "latency", "plan", "pricing", "provenance", "run", "search", "store", "texts",
                           "tightening", "workbench"}),
    "speed": frozenset({"api", "events", "latency", "pricing", "store", "workbench"}),
    "provenance": frozenset(),
    "found": frozenset({"api", "models", "plan", "report", "search", "store", "workbench"}),
    "report": frozenset({"api", "files", "latency", "plan", "store"}),
    "run": frozenset({"api", "data", "bank", "events", "executors", "export", "fitness", "found", "gate", "hooks", "knowledge", "latency",
                      "memory", "models", "plan", "precision", "pricing", "provenance", "recording", "rehearsal", "report", "search",
                      "speed", "store", "texts", "tightening", "workbench"}),
    "tightening": frozenset({"api", "search"}),
    "reopening": frozenset({"api", "events", "found", "hooks", "plan", "store", "texts", "workbench"}),
    "profile_bench": frozenset({"api", "bank", "events", "gate", "latency", "models", "pricing", "reopening", "speed", "store",
                                "workbench"}),
    "contest": frozenset({"api", "bank", "data", "events", "gate", "hooks", "knowledge", "latency", "plan", "precision", "pricing",
                          "provenance", "recording", "rehearsal", "report", "search", "store", "texts", "workbench"}),
    "cli": frozenset({"api", "contest", "data", "events", "export", "files", "fitness", "frontier", "home", "hooks", "latency",
                      "models", "plan", "precision", "pricing", "profile_bench", "rehearsal", "reopening", "report", "run", "store",
                      "testing", "texts", "throughput", "timing", "workbench"}),
    "evopress": frozenset({"api", "events", "found", "home", "run"}),
}  # fmt: skip
"""Part of the package -> the parts it may import when loaded or called. `evopress` is the package's own `__init__`."""

TYPING_PARTS: Mapping[str, frozenset[str]] = {"report": frozenset({"found"})}
"""What a part may name in annotations beyond that: the comparison prints a Run, which it is handed."""

NARROW: Mapping[tuple[str, str], frozenset[str]] = {
    ("search", "hooks"): frozenset({"evopress.hooks.specs"}),
    ("fitness", "hooks"): frozenset({"evopress.hooks.specs"}),
    ("fitness", "store"): frozenset({"evopress.store.rows"}),
    ("testing", "latency"): frozenset({"evopress.latency.sample"}),
    ("report", "plan"): frozenset({"evopress.plan"}),
}
"""Where a part may import another, but only these of its modules."""

PLUGIN_IMPORTS = ("evopress.api", "evopress.hooks.specs")
PLUGIN_PACKAGES: Mapping[str, frozenset[str]] = {"evopress_triton": frozenset({"triton"})}
"""Third-party packages a plugin may use beside torch."""

THIRD_PARTY: Mapping[str, frozenset[str]] = {
    "api": frozenset({"torch"}),
    "hooks": frozenset({"pluggy"}),
    "search": frozenset({"numpy"}),
    "store": frozenset({"sqlalchemy", "alembic", "psycopg"}),
    "events": frozenset(),
    "home": frozenset({"platformdirs"}),
    "plan": frozenset(),
}
"""Packages a part may use at all (others are free to choose); torch in `api` only inside functions, see LIGHT."""
EXTRA_IMPORTS: Mapping[str, frozenset[str]] = {
    "evopress/api/study.py": frozenset({"pydantic"}),
    "evopress/api/contest.py": frozenset({"pydantic"}),
    "evopress/api/speed_study.py": frozenset({"pydantic"}),
    "evopress/search/bayes.py": frozenset({"optuna"}),
    "evopress/api/formats.py": frozenset({"gguf"}),
    "kernels/evopress_peers/onnxruntime.py": frozenset({"onnx", "onnxruntime"}),
}

HEAVY = frozenset({"torch", "transformers", "sqlalchemy", "alembic", "scipy", "safetensors", "datasets", "lm_eval", "gguf", "ray",
                   "optuna", "onnx", "onnxruntime"})  # fmt: skip
LIGHT = frozenset({"evopress", "api", "hooks", "search", "cli", "events", "home", "data", "report"})
"""Parts whose modules load without any of HEAVY; likewise every plugin's `__init__`."""

# Style ----------------------------------------------------------------------------------------------------------------------------------

FORBIDDEN_WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK|sandbox(?:ed)?|chatbot|AI agents?|coding agents?|this session|issue #?\d+)\b")
FORBIDDEN_NOUNS = re.compile(r"^(Candidate|Allocation|Unit|Individual)$|(Manager|Helper|Utils?)$")
ABSOLUTE = re.compile(r"(?<![\w.:/-])/(?:home|root|work|Users|tmp|var|opt|mnt|workspace)/")

SEEDS_AND_RESTORES = frozenset({"evopress/fitness/tasks.py"})
"""Files that run a stranger's code which draws from the global generators: they seed, and put the states back."""


@dataclass(frozen=True)
class Import:
    """One imported module, and when that happens."""

    module: str
    when: When
    line: int


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources() -> list[Path]:
    return sorted(path for root in ROOTS for path in root.rglob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def dotted(path: Path) -> str:
    """Import name of a file: `evopress.search.loop`, `evopress_gptq.solver`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] in ("plugins", "kernels") else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The part a module of ours belongs to; `evopress` for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[0] == "evopress" else names[0]


def imports(path: Path) -> list[Import]:
    return list(_imports(tree(path), "import"))


def _imports(node: ast.AST, when: When) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in {part.id for part in ast.walk(child.test) if isinstance(part, ast.Name)}:
            for statement in child.body:
                yield from _imports(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), when)
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, when, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import; write the full name"
            base = child.module or ""
            # `from evopress import hooks` names a module; `from evopress.api import Site` may name either, and the base tells the part.
            yield from (Import(f"{base}.{alias.name}" if base == "evopress" else base, when, child.lineno) for alias in child.names)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(child, "call" if inside and when == "import" else when)


def ours(module: str) -> bool:
    return module.split(".")[0] == "evopress"


def foreign(module: str) -> str:
    """Top package of a third-party import, "" for the standard library and for ours."""
    top = module.split(".")[0]
    return "" if top in sys.stdlib_module_names or top.startswith("evopress") else top


def in_package(path: Path) -> bool:
    return path.is_relative_to(ROOT / "evopress")


def package_files() -> list[Path]:
    return [path for path in sources() if in_package(path)]


def plugin_files() -> list[Path]:
    return [path for path in sources() if not in_package(path)]


def test_the_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    """The walk itself can fail: a planted file with an import in each place."""
    file = tmp_path / "planted.py"
    file.write_text(
        "import a\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\n    class X:\n        import e\ntry:\n    import g\nexcept ImportError:\n    pass\n"
        "from evopress import search\nclass Y:\n    import h\n    def m(self):\n        from i import j\n"
    )
    found = {item.module: item.when for item in imports(file)}
    want = {"a": "import", "b": "typing", "c": "import", "d": "call", "e": "call", "g": "import", "h": "import", "i": "call"}
    assert found == {"typing": "import", "evopress.search": "import", **want}


def test_every_part_has_its_arrows() -> None:
    """A new folder or top-level module must say here what it may import."""
    parts = {part_of(dotted(path)) for path in package_files()}
    assert parts <= PARTS.keys()
    for part, allowed in PARTS.items():
        assert allowed <= PARTS.keys() - {"evopress"}, part


def test_the_arrows_have_no_cycle() -> None:
    """The table itself is a direction: nothing reaches itself."""
    left = {part: set(allowed) for part, allowed in PARTS.items()}
    while free := [part for part, allowed in left.items() if not allowed & left.keys()]:
        for part in free:
            del left[part]
    assert not left, f"cycle among {sorted(left)}"


def test_package_imports_follow_the_arrows() -> None:
    wrong: list[str] = []
    for path in package_files():
        part = part_of(dotted(path))
        for item in imports(path):
            if not item.module.startswith("evopress"):
                continue
            target = part_of(item.module)
            if target == part:
                continue
            allowed = PARTS[part] | (TYPING_PARTS.get(part, frozenset()) if item.when == "typing" else frozenset())
            narrow = NARROW.get((part, target))
            # A name under `from evopress.store.rows import X` is the module itself; deeper is fine only when it is listed.
            if target not in allowed or (narrow is not None and item.when != "typing" and item.module not in narrow):
                wrong.append(f"{shown(path)} line {item.line}: {item.module} ({item.when}); {part} may import {', '.join(sorted(allowed))}")
    assert not wrong, "\n".join(wrong)


def test_plugins_import_only_the_api() -> None:
    """Built-in plugins live by the rules of strangers: `evopress.api`, the hook marker, their own package, torch where they compute."""
    wrong: list[str] = []
    for path in plugin_files():
        own = dotted(path).split(".")[0]
        for item in imports(path):
            top = item.module.split(".")[0]
            allowed = (
                item.module in PLUGIN_IMPORTS
                or item.module.startswith("evopress.api.")
                or top == own
                or foreign(item.module) in {"torch"} | PLUGIN_PACKAGES.get(own, frozenset())
                or (item.when == "call" and foreign(item.module) in EXTRA_IMPORTS.get(shown(path), frozenset()))
                or top in sys.stdlib_module_names
            )
            if not allowed:
                wrong.append(f"{shown(path)} line {item.line}: {item.module}")
            if path.name == "__init__.py" and item.when == "import" and foreign(item.module):
                wrong.append(
                    f"{shown(path)} line {item.line}: {item.module} at import; a plugin's __init__ loads when its name is asked for"
                )
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_stay_where_they_belong() -> None:
    wrong: list[str] = []
    for path in package_files():
        part = part_of(dotted(path))
        for item in imports(path):
            name = foreign(item.module)
            if not name or item.when == "typing":
                continue
            allowed = THIRD_PARTY.get(part)
            if allowed is not None and name not in allowed | EXTRA_IMPORTS.get(shown(path), frozenset()):
                wrong.append(f"{shown(path)} line {item.line}: {name} does not belong in {part}")
            if item.when == "import" and name in HEAVY and part in LIGHT:
                wrong.append(f"{shown(path)} line {item.line}: {name} at import of {part}; import it in the function that needs it")
            if name == "torch" and part in ("store", "search", "hooks", "events", "home", "plan"):
                wrong.append(f"{shown(path)} line {item.line}: torch in {part}")
    assert not wrong, "\n".join(wrong)


def loaded_by(code: str) -> list[str]:
    """Modules of a fresh interpreter after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules


def test_help_loads_nothing_heavy() -> None:
    """`evopress --help` answers at once because of what it does not load; a timer would only measure the machine."""
    code = (
        "import sys\nsys.argv = ['evopress', '--help']\nfrom evopress.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code"
    )
    loaded = set(loaded_by(code))
    assert {"evopress.cli", "evopress.cli.search"} <= loaded
    heavy = HEAVY | {"numpy", "pydantic", "pluggy", "matplotlib", "optuna", "huggingface_hub"}
    assert not loaded & heavy, f"--help loads {sorted(loaded & heavy)}"
    allowed = ("evopress.api", "evopress.cli", "evopress.events", "evopress.home")
    strangers = sorted(name for name in loaded if ours(name) and name != "evopress" and not name.startswith(allowed))
    assert not strangers, f"--help loads {strangers}"


@pytest.mark.parametrize(
    "module", ["evopress", "evopress.api", "evopress.api.study", "evopress.home", "evopress.hooks.registry", "evopress.search.evolve"]
)
def test_light_modules_load_without_torch(module: str) -> None:
    loaded = set(loaded_by(f"import {module}"))
    assert not loaded & HEAVY, f"import {module} loads {sorted(loaded & HEAVY)}"


def test_the_front_door_stays_a_function() -> None:
    """Importing the subpackage `evopress.search` must not replace the function of that name: a notebook calls it twice."""
    code = "import evopress\nimport evopress.search.evolve\nfrom evopress.search.loop import drive\n"
    code += "from evopress.hooks.registry import Registry\nRegistry.load()\nimport types\n"
    loaded_by(code + "assert isinstance(evopress.search, types.FunctionType) and callable(drive)")


def test_loading_the_registry_does_not_load_torch() -> None:
    """Every built-in plugin names its classes without torch, but for kernels, which cannot be named without their tensors."""
    packages = sorted(path.name for path in (ROOT / "kernels").iterdir())
    code = "from evopress.hooks.registry import Registry\nimport importlib.metadata as m\n" + (
        f"r = Registry.load([p for p in m.entry_points(group='evopress') if p.value not in {packages}])\n"
        "assert r.classes['method'] and r.classes['searcher'] and r.classes['fitness']"
    )
    assert "torch" not in loaded_by(code)


# Style ----------------------------------------------------------------------------------------------------------------------------------


def test_files_are_short_and_open_with_a_docstring() -> None:
    wrong: list[str] = []
    for path in sources():
        lines, doc = line_count(path), ast.get_docstring(tree(path))
        if lines > HARD_LINES:
            wrong.append(f"{shown(path)} has {lines} lines; split it by idea (aim for 400)")
        if not doc or not doc.splitlines()[0].strip():
            wrong.append(f"{shown(path)} does not open with a docstring")
    assert not wrong, "\n".join(wrong)


def test_few_files_pass_400_lines() -> None:
    """`Mostly under 400`: at most a handful, and never more than a twentieth of all files."""
    long = [shown(path) for path in sources() if line_count(path) > 400]
    assert len(long) <= max(1, len(sources()) // 20), long


def test_code_has_no_switches_on_attributes_bare_excepts_or_prints() -> None:
    wrong: list[str] = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{shown(path)} line {node.lineno}: bare except")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "hasattr":
                    wrong.append(f"{shown(path)} line {node.lineno}: hasattr")
                if node.func.id == "print" and not path.is_relative_to(ROOT / "evopress" / "cli"):
                    wrong.append(f"{shown(path)} line {node.lineno}: print outside the command line")
                if node.func.id in ("eval", "exec"):
                    wrong.append(f"{shown(path)} line {node.lineno}: {node.func.id}")
            if isinstance(node, ast.ClassDef) and FORBIDDEN_NOUNS.search(node.name):
                wrong.append(f"{shown(path)} line {node.lineno}: class {node.name}; use the nouns of the design")
            if isinstance(node, ast.Raise) and _raises(node) in ("Exception", "BaseException", "NotImplementedError"):
                wrong.append(f"{shown(path)} line {node.lineno}: raise {_raises(node)}; no stubs, and errors derive from EvopressError")
    assert not wrong, "\n".join(wrong)


def _raises(node: ast.Raise) -> str:
    target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return target.id if isinstance(target, ast.Name) else ""


def test_nothing_seeds_globals() -> None:
    """Randomness comes in as an argument; the global generators of random, numpy and torch are left alone."""
    wrong = [
        f"{shown(path)} line {node.lineno}: {ast.unparse(node.func)}"
        for path in sources()
        if shown(path) not in SEEDS_AND_RESTORES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("random.seed", "np.random.seed", "numpy.random.seed", "torch.manual_seed")
    ]
    assert not wrong, "\n".join(wrong)


def texts() -> list[Path]:
    """Every text of the project that a reader may open."""
    suffixes = {".py", ".md", ".toml", ".txt", ".mako"}
    skipped = {"evopress.egg-info", "node_modules"}
    found = [path for path in ROOT.rglob("*") if path.suffix in suffixes and path.is_file()]
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") or part in skipped for part in path.relative_to(ROOT).parts) and path != Path(__file__).resolve()
    )


def test_texts_have_no_absolute_paths_and_no_leftovers() -> None:
    wrong: list[str] = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := ABSOLUTE.search(line):
                wrong.append(f"{shown(path)} line {number}: absolute path {found.group()}")
            if found := FORBIDDEN_WORDS.search(line):
                wrong.append(f"{shown(path)} line {number}: {found.group()!r}")
    assert not wrong, "\n".join(wrong)
