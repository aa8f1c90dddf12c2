"""The twelve bugs found in the published code, each a test by name somewhere in this suite; those without a better place are here.

| bug | what went wrong there | tests here |
|---|---|---|
| B1 | the final score belongs to the last candidate loaded, not to the winner | tests/run/test_run_facts.py::test_b1_the_reported_values_are_those_of_the_winner |
| B1 | | tests/models/test_stitch.py::test_b1_b2_the_model_computes_the_last_profile_whatever_came_before |
| B2 | the saved model is in that same wrong state | tests/run/test_run_facts.py::test_b2_the_winner_applied_to_a_model_has_the_winner_weights |
| B3 | act-order stores permuted columns | tests/plugins/test_gptq_solver.py::test_b3_act_order_stores_codes_in_original_column_order |
| B4 | brute force does not run | tests/test_reference_bugs.py::test_b4_brute_force_runs_and_evolve_finds_its_best |
| B5 | a number of samples is passed where tokens are meant | tests/test_reference_bugs.py::test_b5_calibration_reads_tokens_not_samples |
| B6 | endless loops: too few tokens, no legal move, too few mutants | tests/data/test_tokens.py::test_b6_more_tokens_than_there_are_is_an_error |
| B6 | | tests/search/test_search_parity.py::test_b6_no_legal_move_ends_the_search |
| B6 | | tests/search/test_search_parity.py::test_b6_fewer_distinct_mutants_than_offspring_do_not_loop |
| B7 | elitism by comparing survivor counts | tests/search/test_search_parity.py::test_b7_the_parent_joins_in_the_last_stage_only |
| B8 | KL over ten renormalised tokens hides the tail | tests/test_reference_bugs.py::test_b8_kl_sees_damage_that_ten_renormalised_tokens_hide |
| B9 | integer targets, level indices for costs, a swallowed error | tests/search/test_search_knapsack.py::test_b9_fractional_targets_are_met |
| B9 | | tests/search/test_search_knapsack.py::test_b9_costs_are_bytes_not_level_indices |
| B9 | | tests/test_architecture.py::test_code_has_no_switches_on_attributes_bare_excepts_or_prints |
| B10 | copies of the parent are offspring | tests/search/test_search_parity.py::test_b10_copies_of_the_parent_are_no_offspring |
| B11 | at an exact budget no switch fits, so the search never leaves uniform | tests/search/test_search_parity.py::test_b11_at_an_exact_budget_switches_are_possible |
| B12 | every rank writes the same file at once | tests/test_reference_bugs.py::test_b12_writers_of_one_bank_file_never_tear_it |
| B12 | | tests/run/test_run_two_processes.py::test_b12_two_processes_build_one_bank_and_share_one_study |
"""  # noqa: E501

from __future__ import annotations

import ast
import math
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny import VOCAB, build
from torch import Tensor

from evopress.api import Cost, Level, Site, Variant
from evopress.bank.bank import Bank
from evopress.data.tokens import build as build_tokens
from evopress.fitness.divergence import KL, kl_sum
from evopress.models.calibrate import calibrate
from evopress.models.sites import find_sites
from evopress.search.evolve import Evolve
from evopress.search.slices import draw_slice
from evopress.testing.searchers import budget_between, follow, measure_with, planted_function, planted_problem, planted_space

ROOT = Path(__file__).resolve().parents[1]


# B4 -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_b4_brute_force_runs_and_evolve_finds_its_best(seed: int) -> None:
    """All 256 masks of four attentions and four MLPs, measured by a function with interactions; the best that fits is what evolve returns.

    On a model with all 8008 masks of 6 of 16 blocks: tests/search/test_exhaustive_model.py.
    """
    space = planted_space(4, ("drop",), ("attention", "mlp"), linears=False)
    problem = planted_problem(space, (budget_between(space, "params", 0.5),), errors=False)
    function = planted_function(space, seed, interaction=1.0)
    everything = [space.profile(picks) for picks in product(*(range(len(space.choices(gene))) for gene in range(len(space.genes))))]
    assert len(everything) == len(set(everything)) == 2**8
    feasible = [profile for profile in everything if all(budget.allows(space.cost(profile)) for budget in problem.budgets)]
    assert 8 < len(feasible) < len(everything)
    best = min(feasible, key=function)
    searcher = Evolve(problem, random.Random(seed), generations=30, offspring=8, rungs=((1, 1400),))
    follow(searcher, measure_with(function, space))
    assert searcher.incumbent == best


# B5 -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [64, 200])
def test_b5_calibration_reads_tokens_not_samples(tokens: int) -> None:
    """The number a study gives counts tokens all the way: in the token set, in the statistics, and in a stage of the search."""
    rng = random.Random(0)
    letters = [chr(2 + number) for number in range(VOCAB - 2)]
    texts = ["".join(rng.choices(letters, k=150)) for _ in range(12)]
    made = build_tokens("planted", texts, lambda text: [ord(letter) for letter in text], "calibration", tokens, 16, 0)
    assert made.tokens == sum(map(len, made.documents)) == tokens
    assert len(made.documents) == math.ceil(tokens / 16)

    model = build("llama")
    sitemap = find_sites(model)
    wanted = {site.name for site in sitemap.of_kind("linear")}
    statistics = {}
    for _, found in calibrate(model, sitemap, [torch.tensor([document]) for document in made.documents], wanted):
        statistics |= found
    assert statistics.keys() == wanted
    assert {stats.tokens for stats in statistics.values()} == {tokens}
    # The mean is over those tokens: the first block's input is known, so its second moment is checked against the plain formula.
    ids = torch.cat([torch.tensor(document) for document in made.documents])
    block = model.model.layers[0]
    x_TC = block.input_layernorm(model.model.embed_tokens(ids)).double()
    moment = statistics["model.layers.0.self_attn.q_proj"].second_moment
    assert moment is not None
    torch.testing.assert_close(moment.double(), x_TC.T @ x_TC / tokens, rtol=1e-4, atol=1e-5)


def test_b5_a_stage_of_a_search_counts_tokens() -> None:
    problem = planted_problem()
    for tokens in (64, 701, 2048):
        slice_ = draw_slice(random.Random(0), problem, tokens)
        assert slice_.tokens == tokens
        assert len(slice_.documents) == math.ceil(tokens / 700)


# B8 -------------------------------------------------------------------------------------------------------------------------------------


def _kl_of_ten(teacher_PV: Tensor, student_PV: Tensor) -> float:
    """The published `sparse_kl` with its default of ten: both sides renormalised over the teacher's ten likeliest tokens."""
    teacher_PK, ids_PK = teacher_PV.topk(10, dim=-1)
    log_p, log_q = teacher_PK.log_softmax(-1), student_PV.gather(-1, ids_PK).log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def _with_other_tail(teacher_PV: Tensor, seed: int) -> Tensor:
    """A student whose ten likeliest tokens have the teacher's logits and whose tail is dealt anew: the tail's mass is the same too."""
    rng = torch.Generator().manual_seed(seed)
    student_PV = teacher_PV.clone()
    order_PV = teacher_PV.argsort(-1, descending=True)
    for position, order_V in enumerate(order_PV):
        tail = order_V[10:]
        student_PV[position, tail] = teacher_PV[position, tail[torch.randperm(len(tail), generator=rng)]]
    return student_PV


def test_b8_kl_sees_damage_that_ten_renormalised_tokens_hide() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher_PV = 2 * torch.randn(70, 500, generator=rng)
    student_PV = _with_other_tail(teacher_PV, 1)
    assert abs(_kl_of_ten(teacher_PV, student_PV)) < 1e-6
    tail_mass = 1 - float(teacher_PV.softmax(-1).topk(10, dim=-1).values.sum(-1).mean())
    assert 0.3 < tail_mass < 0.9
    log_p, log_q = teacher_PV.double().log_softmax(-1), student_PV.double().log_softmax(-1)
    exact = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    got = float(kl_sum(teacher_PV, student_PV)) / len(teacher_PV)
    assert got == pytest.approx(exact, rel=1e-5)
    assert got > 0.5


def test_b8_the_fitness_of_a_model_reads_the_whole_vocabulary() -> None:
    """End to end: only the head's row of a token that is never among the ten likeliest is changed, and `kl` sees it."""
    model, fitness = build("llama", vocab_size=300, initializer_range=0.1), KL()
    documents = [(0, torch.randint(2, 300, (24,), generator=torch.Generator().manual_seed(0)))]
    with torch.no_grad():
        teacher_PV = model(input_ids=documents[0][1][None]).logits[0, :-1].clone()
        fitness.prepare(model, dict(documents))
        rare = sorted(set(range(300)) - set(teacher_PV.topk(40, dim=-1).indices.flatten().tolist()))
        assert rare, "the planted model has no token outside the forty likeliest anywhere"
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.lm_head.weight[rare] = 0.0
        student_PV = model(input_ids=documents[0][1][None]).logits[0, :-1]
    assert abs(_kl_of_ten(teacher_PV, student_PV)) < 1e-6
    (value,), (positions,) = fitness.score(model, documents)
    log_p, log_q = teacher_PV.double().log_softmax(-1), student_PV.double().log_softmax(-1)
    assert positions == 23
    assert value == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-3)
    assert value > 1e-4


# B12 ------------------------------------------------------------------------------------------------------------------------------------


def test_b12_writers_of_one_bank_file_never_tear_it(tmp_path: Path) -> None:
    """Eight writers of one variant at once, while readers read: a file is whole or absent, and nothing else is left behind."""
    site, level, key = Site("model.layers.0.mlp.up_proj", "linear", (64, 128), 0, None), Level.of("planted", bits=16), "ab" * 32
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).half()
    variant = Variant(site, level, "dense", {"weight": weight}, Cost(2 * 64 * 128, 64 * 128))
    start, done = threading.Barrier(8 + 2), threading.Event()

    def write(_: int) -> None:
        bank = Bank(tmp_path)  # every process has one of its own
        start.wait()
        for _ in range(15):
            bank.put(key, variant, 0.25)

    def read(_: int) -> int:
        bank, seen = Bank(tmp_path), 0
        start.wait()
        while not done.is_set():
            if key in bank:
                assert torch.equal(bank.get(key, site, level).tensors["weight"], weight)
                seen += 1
        return seen

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read, number) for number in range(2)]
        writers = [pool.submit(write, number) for number in range(8)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        assert sum(reader.result() for reader in readers) > 0
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [f"{key}.safetensors"]
    assert Bank(tmp_path).error(key) == 0.25


# The table ------------------------------------------------------------------------------------------------------------------------------


def _table() -> list[tuple[str, str, str]]:
    """(bug, file, test) of every row above."""
    source = ast.get_docstring(ast.parse(Path(__file__).read_text(encoding="utf-8"))) or ""
    return re.findall(r"^\| (B\d+) \|.*\| ([\w/]+\.py)::(test_\w+) \|$", source, re.MULTILINE)


def _tests_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_the_table_names_every_bug() -> None:
    assert list(dict.fromkeys(bug for bug, _, _ in _table())) == [f"B{number}" for number in range(1, 13)]


@pytest.mark.parametrize(("bug", "file", "test"), _table(), ids=[f"{bug}-{test}" for bug, _, test in _table()])
def test_every_named_test_exists(bug: str, file: str, test: str) -> None:
    assert (ROOT / file).is_file(), f"{bug}: {file} does not exist"
    assert test in _tests_in(ROOT / file), f"{bug}: {file} has no {test}"


def test_every_test_named_after_a_bug_belongs_to_the_table() -> None:
    """A test called test_b7_… elsewhere counts for a bug of the table: nobody invents B13."""
    known = {f"b{number}" for number in range(1, 13)}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in _tests_in(path):
            if found := re.match(r"test_((?:b\d+_)+)", name):
                assert set(found.group(1).strip("_").split("_")) <= known, f"{path.name}: {name}"
