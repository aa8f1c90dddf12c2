"""Documentation that can fail: every command, option, key, hook and study that a page names is compared with the live one."""

from __future__ import annotations

import ast
import json
import random
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from evopress.api import Level, UsageError, parse_method
from evopress.api.contest import QUICK, QUICK_LEAST_STOP, Claim, Contest, Entrant, own_keys
from evopress.api.speed_study import FrontierStudy, KernelStudy, SpeedClaim, read_speed_study
from evopress.api.study import DEFAULT_STOP_TOKENS, Study
from evopress.cli import app
from evopress.contest import FIRST_MARK
from evopress.hooks.registry import HOOKS, Registry
from evopress.plan import searcher_class
from evopress.report.contest_document import KEYS
from evopress.search.evolve import Evolve
from evopress.search.sampling import Random
from evopress.testing.searchers import planted_problem, planted_space

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "studies/README.md", "results/README.md")]
COMMANDED = [*PAGES, ROOT / "Makefile"]
DEFINED = sorted((ROOT / "studies").glob("*.toml"))
CONTESTS = [path for path in DEFINED if "entrants" in tomllib.loads(path.read_text(encoding="utf-8"))]
SPEED = [path for path in DEFINED if {"kernels", "winners"} & tomllib.loads(path.read_text(encoding="utf-8")).keys()]
STUDIES = [path for path in DEFINED if path not in (*CONTESTS, *SPEED)]
PLACEHOLDERS = {"FILE", "DIGEST", "NAME", "ID", "DIR", "PROFILE", "…"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands(path: Path) -> Iterator[str]:
    """Every `evopress …` line of a page: in fenced shell blocks, indented blocks, inline code and Makefile recipes."""
    text = page(path)
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "bash", "sh", "console", "shell")]
    rest = _FENCE.sub("", text)
    lines = [line for body in blocks for line in body.replace("\\\n", " ").splitlines()]  # a command may go on on the next line
    lines += re.findall(r"^(?: {4}|\t)(.*)$", rest, re.MULTILINE)
    lines = [re.split(r" [|>] ", line)[0] for line in lines]  # a pipe or redirection in a shell line
    if path.suffix:
        lines += [line for word in _INLINE.findall(rest) for line in alternatives(word)]
    for line in lines:
        stripped = re.sub(r"^(?:\$ |\$\(BIN\)/|\.venv/bin/)", "", line.strip())
        if re.match(r"evopress(\s|$)", stripped):
            yield stripped


def alternatives(text: str) -> list[str]:
    """`evopress search start | resume` in running text names two commands."""
    first, *others = text.split(" | ")
    return [first, *(f"{first.rsplit(' ', 1)[0]} {other}" for other in others)]


def check(line: str) -> str:
    """Why the command line does not exist as written, "" if it does. Values of options are not judged."""
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context: Any = click.Context(command)
    taken = 0
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        options = list(words)
        if not options or options[0].startswith("-") or options[0] in PLACEHOLDERS:
            break
        name = options[0]
        found = command.get_command(context, name)
        if found is None:
            return f"{line!r}: no command {name!r}; there are {sorted(command.list_commands(context))}"
        command, words = found, options[1:]
        taken += 1
    flags = [(flag, parameter) for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    known = {flag: parameter for flag, parameter in flags if flag.startswith("-")}
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    given, skip = 0, False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-") and len(word) > 1:
            flag, _, value = word.partition("=")
            if flag == "--help":
                continue
            if flag not in known:
                return f"{line!r}: no option {flag!r}; there are {sorted(known)}"
            skip = not value and not getattr(known[flag], "is_flag", False)
        elif word != "…":
            given += 1
    if skip:
        return f"{line!r}: the last option has no value"
    most = sum(parameter.nargs if parameter.nargs > 0 else 99 for parameter in arguments)
    return f"{line!r}: {given} arguments, at most {most} are taken" if given > most else ""


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("evopress search start studies/demo.toml --seed 1  # a comment", ""),
        ("evopress serch start", "no command 'serch'"),
        ("evopress search begin", "no command 'begin'"),
        ("evopress search start --metod gptq", "no option '--metod'"),
        ("evopress search start --seed", "has no value"),
        ("evopress search start a.toml b.toml", "2 arguments"),
        ("evopress leaderboard --pareto extra", "1 arguments"),
        ("evopress --version", ""),
    ],
)
def test_the_check_itself_can_fail(line: str, why: str) -> None:
    found = check(line)
    assert (why in found) if why else (found == "")


@pytest.mark.parametrize("path", COMMANDED, ids=lambda path: path.name if path.parent == ROOT else f"{path.parent.name}/{path.name}")
def test_every_command_on_a_page_exists(path: Path) -> None:
    wrong = [why for line in commands(path) if (why := check(line))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_name_commands_at_all() -> None:
    """Guards the extraction: a page whose commands are not seen would pass."""
    assert len(list(commands(ROOT / "README.md"))) >= 8
    assert len(list(commands(ROOT / "Makefile"))) >= 2
    assert len(list(commands(ROOT / "studies" / "README.md"))) >= 4


def files_named(path: Path) -> Iterator[str]:
    """Files and folders of the project that a page names in code: `evopress/api/`, `studies/demo.toml`."""
    for word in _INLINE.findall(_FENCE.sub("", page(path))):
        if re.fullmatch(r"(?:evopress|plugins|kernels|studies|results|tests)/[\w./-]*", word):
            yield word


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_file_a_page_names_exists(path: Path) -> None:
    missing = [name for name in files_named(path) if not (ROOT / name).exists()]
    assert not missing


# Studies --------------------------------------------------------------------------------------------------------------------------------


def key_row(name: str) -> str:
    """The line that documents a key, made from the model of the study itself."""
    field = Study.model_fields[name]
    if field.default is PydanticUndefined:
        shown = "the file's name"
    elif field.default is None:
        shown = "none"
    else:
        shown = f"`{json.dumps(field.default, ensure_ascii=False)}`"
    return f"| `{name}` | {shown} | {field.description} |"


def test_studies_readme_documents_every_key_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*$", page(ROOT / "studies" / "README.md").split("## Every key")[1].split("### ")[0], re.MULTILINE)
    assert rows == list(Study.model_fields)
    missing = [row for name in Study.model_fields if (row := key_row(name)) not in page(ROOT / "studies" / "README.md")]
    assert not missing, "replace these lines in studies/README.md:\n" + "\n".join(missing)


def contest_rows(model: type[BaseModel], keys: Sequence[str], **defaults: str) -> list[str]:
    """The lines that document keys of a contest, of an entrant or of a claim. defaults: those that the model does not know itself."""
    rows = []
    for name in keys:
        field = model.model_fields[name]
        own = "required" if field.is_required() else "none" if field.default is None else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {defaults.get(name, own)} | {field.description} |")
    return rows


def test_studies_readme_documents_every_key_of_a_contest() -> None:
    text = page(ROOT / "studies" / "README.md").split("## Contests")[1]
    entrant = contest_rows(Entrant, list(Entrant.model_fields), tokens="the contest's")
    wanted = [*contest_rows(Contest, own_keys()), *entrant, *contest_rows(Claim, list(Claim.model_fields))]
    assert re.findall(r"^\| `\w+` \|.*$", text, re.MULTILINE) == wanted, "the tables should be:\n" + "\n".join(wanted)
    assert f"Marks are taken at {FIRST_MARK:,} token-forwards" in text


def test_the_example_of_a_contest_is_one(registry: Registry) -> None:
    text = page(ROOT / "studies" / "README.md").split("## Contests")[1]
    (example,) = [body for language, body in _FENCE.findall(text) if language == "toml"]
    check_contest(Contest.make({"name": "example", **tomllib.loads(example)}), registry)


def test_results_readme_names_every_key_of_a_contest() -> None:
    """The keys of a document and of its runs, by the syntax of what makes them, and the keys that a reader checks."""
    source = ast.parse(page(ROOT / "evopress" / "contest.py"))
    field = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "_Field")
    written: dict[str, set[str]] = {}
    for node in field.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("document", "run", "bank", "_heldout", "_mark"):
            dictionaries = [part for part in ast.walk(node) if isinstance(part, ast.Dict)]
            found = [key.value for part in dictionaries for key in part.keys if isinstance(key, ast.Constant)]
            written[node.name] = {str(key) for key in found}
    assert len(written) == 5
    top, run = page(ROOT / "results" / "README.md").split("## What the file of a contest holds")[1].split("A run:")
    assert written["document"] >= KEYS
    for key in written["document"] | written["bank"] | written["_heldout"] - {"recipe"}:
        assert f"`{key}`" in top or key in ("name", "digest"), f"results/README.md does not explain {key} of a contest"
    for key in {"final"} | written["run"] | written["_mark"] - {"profile"}:
        assert f"`{key}`" in run, f"results/README.md does not explain {key} of a run"


def test_studies_readme_states_the_default_stop() -> None:
    assert Study.make({}).stops == {"stop_tokens": DEFAULT_STOP_TOKENS}
    assert f"`stop_tokens` is {DEFAULT_STOP_TOKENS:,}" in page(ROOT / "studies" / "README.md")


def test_what_a_quick_contest_leaves_is_stated() -> None:
    assert QUICK == 8
    for text in (page(ROOT / "studies" / "README.md"), page(ROOT / "evopress" / "cli" / "study.py")):
        assert re.search(rf"an eighth\s+of all tokens, but at least {QUICK_LEAST_STOP:,} a search", text)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def check_names(study: Study, registry: Registry) -> None:
    """Resolve every name of a study as a run would, without a model."""
    registry.get("fitness", study.fitness)
    for text in study.methods:
        registry.method(text)
    for text in (study.searcher, *study.baselines):
        searcher_class(registry, text, study)
    for text in study.budgets:
        if "(" in text:
            level = Level.parse(text.partition("=")[2])
            assert level.method in {parse_method(method)[0] for method in study.methods}, f"{text} names a level no method offers"


def test_there_is_a_demo_study() -> None:
    assert ROOT / "studies" / "demo.toml" in STUDIES


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_is_valid_and_its_names_resolve(path: Path, registry: Registry) -> None:
    study = Study.read(path)
    assert study.name == path.stem
    assert study.stops, f"{path.name} never stops"
    assert set(tomllib.loads(page(path))) <= Study.model_fields.keys()
    check_names(study, registry)


@pytest.mark.parametrize("path", SPEED, ids=lambda path: path.name)
def test_every_speed_study_is_valid_and_its_names_resolve(path: Path, registry: Registry) -> None:
    study = read_speed_study(path)
    assert study is not None
    assert study.name == path.stem
    if isinstance(study, FrontierStudy):
        assert study.study.stops, f"{path.name} never stops"
        for label, budgets in study.winners.items():
            check_names(study.study.model_copy(update={"name": f"{study.name}-{label}", "budgets": budgets}), registry)


def test_studies_readme_documents_every_key_of_a_kernel_study() -> None:
    text = page(ROOT / "studies" / "README.md").split("## Speed studies")[1].split("## Contests")[0]
    for name, field in KernelStudy.model_fields.items():
        if name not in ("name", "claims"):
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            assert f"| `{name}` | {default} |" in text, f"studies/README.md lacks | `{name}` | {default} | of a kernel study"
    for name in get_args(SpeedClaim.model_fields["metric"].annotation):
        assert f"`{name}`:" in text


def check_contest(contest: Contest, registry: Registry) -> None:
    """As `check_names`, for every entrant."""
    for entrant in contest.entrants.values():
        check_names(contest.study.model_copy(update={"searcher": entrant.searcher}), registry)


@pytest.mark.parametrize("path", CONTESTS, ids=lambda path: path.name)
def test_every_contest_is_valid_and_its_names_resolve(path: Path, registry: Registry) -> None:
    contest = Contest.read(path)
    assert contest.name == path.stem
    assert contest.claims
    check_contest(contest, registry)


@pytest.mark.parametrize(
    "values", [{"methods": ["gtpq"]}, {"searcher": "evolve(ofspring=3)"}, {"fitness": "kll"}, {"methods": ["gptq(bits=1)"]}]
)
def test_a_wrong_name_in_a_study_is_found(values: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(UsageError):
        check_names(Study.make(values), registry)


def test_every_specification_in_studies_readme_parses(registry: Registry) -> None:
    """The tables of methods and searchers: each written example is built."""
    text = page(ROOT / "studies" / "README.md").replace("\\|", "|")
    seen = set()
    for word in re.findall(r"`([^`\n]+)`", text.split("### Methods")[1]):
        if not re.fullmatch(r"[a-z]+(\(.*\))?", word):
            continue
        name, _ = parse_method(word)
        if name in registry.classes["method"]:
            registry.method(word)
        elif name in registry.classes["searcher"]:
            searcher_class(registry, word, Study.make({}))
        elif "(" in word:
            raise AssertionError(f"{word} is neither a method nor a searcher")
        else:
            continue
        seen.add(name)
    assert seen >= {"gptq", "rtn", "sparsegpt", "magnitude", "wanda", "drop", "evolve", "random", "uniform", "greedy", "knapsack"}


def test_searchers_start_where_studies_readme_says() -> None:
    """What a searcher would answer before it measured anything, given one profile that no simple answer is."""
    text = page(ROOT / "studies" / "README.md")
    assert "`evolve` starts from the best of them" in text
    assert "`random` starts from none of them" in text
    problem = planted_problem(planted_space(3, ("gptq",)))
    odd = Random(problem, random.Random(7)).incumbent
    given = replace(problem, starts=(problem.space.genotype(odd),))
    assert Evolve(given, random.Random(0)).incumbent == odd
    assert Evolve(given, random.Random(0), mode="parity").incumbent != odd
    assert Random(given, random.Random(0)).incumbent != odd


def test_the_default_study_resolves(registry: Registry) -> None:
    check_names(Study.make({}), registry)


# Hooks and results ----------------------------------------------------------------------------------------------------------------------


def hooks() -> list[str]:
    """Hook names in specs.py, by its syntax."""
    source = ast.parse(page(ROOT / "evopress" / "hooks" / "specs.py"))
    functions = [node for node in source.body if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if "hookspec" in map(ast.unparse, node.decorator_list)]


def test_every_hook_is_documented_and_served() -> None:
    found = hooks()
    assert len(found) >= 4
    assert sorted(found) == sorted(hook for hook, _ in HOOKS.values())
    contributing = page(ROOT / "CONTRIBUTING.md")
    for hook in found:
        assert f"`{hook}`" in contributing, f"CONTRIBUTING.md does not name {hook}"
    named = set(re.findall(r"\bevopress_(?:methods|kernels|fitnesses|searchers|exporters)\b", contributing))
    assert named <= set(found), f"CONTRIBUTING.md names hooks that do not exist: {sorted(named - set(found))}"


def test_dotted_names_in_the_pages_exist() -> None:
    """`evopress.api.Method`, `evopress.testing.methods.check_method`: every dotted name in code imports."""
    import importlib

    wrong = []
    for path in PAGES:
        for word in set(re.findall(r"`(evopress(?:\.\w+)+)(?:\([^`]*\))?`", page(path))) - {"evopress.db"}:
            parts = word.split(".")
            for cut in range(len(parts), 0, -1):
                try:
                    found: Any = importlib.import_module(".".join(parts[:cut]))
                except ModuleNotFoundError:
                    continue
                break
            for name in parts[cut:]:
                if name not in dir(found):
                    wrong.append(f"{path.name}: {word}")
                    break
                found = getattr(found, name)
    assert not wrong


def test_results_readme_names_every_key_the_tool_writes() -> None:
    """The keys of `result_json` and of its rows, by the syntax of the function that writes them."""
    source = ast.parse(page(ROOT / "evopress" / "report" / "result.py"))
    written = {}
    for node in source.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("result_json", "_row"):
            dictionaries = [part for part in ast.walk(node) if isinstance(part, ast.Dict)]
            largest = max(dictionaries, key=lambda part: len(part.keys))
            keys = {key.value for key in largest.keys if isinstance(key, ast.Constant)}
            keys |= {
                part.slice.value
                for part in ast.walk(node)
                if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store) and isinstance(part.slice, ast.Constant)
            }
            written[node.name] = keys
    assert len(written) == 2
    text = page(ROOT / "results" / "README.md")
    top, row = text.split("A row:")
    for key in written["result_json"]:
        assert f"`{key}`" in top, f"results/README.md does not explain {key}"
    for key in written["_row"]:
        assert f"`{key}`" in row, f"results/README.md does not explain {key} of a row"


# The method of CONTRIBUTING ------------------------------------------------------------------------------------------------------------


def test_the_method_in_contributing_is_short_and_passes_the_shipped_check() -> None:
    from evopress.testing.methods import check_method

    code = next(body for language, body in _FENCE.findall(page(ROOT / "CONTRIBUTING.md")) if language == "python" and "class Sign" in body)
    assert len(code.splitlines()) < 50
    names: dict[str, Any] = {"__name__": "evopress_sign"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    assert check_method(names["Sign"]())
    assert names["evopress_methods"]() == [names["Sign"]]
