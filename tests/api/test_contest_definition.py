"""Contest files: what they hold, what is refused and how it is said, and the quick version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evopress.api import NotFound, UsageError
from evopress.api.contest import QUICK_LEAST, Contest
from evopress.api.study import Study

ENTRANTS: dict[str, Any] = {"uniform": "uniform", "long": {"searcher": "guided", "tokens": 600_000}, "short": {"searcher": "guided"}}
CLAIM = {"says": "it wins", "metric": "tokens", "entrant": "long", "baseline": "uniform", "comparator": ">=", "goal": 3}


def make(**changed: Any) -> Contest:
    return Contest.make({"name": "c", "entrants": ENTRANTS, "tokens": 80_000, **changed}, "c.toml")


def test_entrants_are_texts_or_tables_and_stop_with_the_contest_unless_they_say_so() -> None:
    contest = make()
    assert list(contest.entrants) == ["uniform", "long", "short"]
    assert [(entrant.searcher, entrant.tokens) for entrant in contest.entrants.values()] == [
        ("uniform", 80_000),
        ("guided", 600_000),
        ("guided", 80_000),
    ]
    assert contest.seeds == (0,)
    assert contest.claims == ()


def test_a_file_gives_its_name_and_whole_numbers_are_goals(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'budgets = ["bits=3.0"]\nseeds = [1, 2]\n[entrants]\nlong = "guided"\nuniform = "uniform"\n[[claims]]\nsays = "a"\n'
        'metric = "fitness"\nentrant = "long"\nbaseline = "uniform"\ncomparator = "<"\ngoal = 0\np = 0.01\n'
    )
    contest = Contest.read(file)
    assert (contest.name, contest.seeds, contest.study.budgets) == ("mine", (1, 2), ("bits=3.0",))
    assert (contest.claims[0].goal, contest.claims[0].p) == (0.0, 0.01)
    with pytest.raises(NotFound):
        Contest.read(tmp_path / "other.toml")


def test_the_base_is_a_study_without_its_searchers_and_the_digest_covers_the_entrants_but_no_claims() -> None:
    contest = make()
    assert contest.base == {key: value for key, value in Study.make({}).identity.items() if key not in ("searcher", "baselines")}
    assert make(claims=[CLAIM]).digest == contest.digest
    assert make(name="d").digest == contest.digest
    other = make(entrants={**ENTRANTS, "greedy": "greedy"})
    assert other.digest != contest.digest
    assert other.base_digest == contest.base_digest
    assert make(budgets=["bits=3.0"]).base_digest != contest.base_digest
    assert make(seeds=[1]).digest != contest.digest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"searcher": "guided"}, "Key 'searcher' of c.toml is none of a contest. Name searchers in [entrants]"),
        ({"stop_tokens": 5}, "Key 'stop_tokens' of c.toml is none of a contest."),
        ({"seed": -1}, "Key 'seed' in c.toml is -1, which is not allowed."),
        ({"seedz": [0]}, "Unknown key 'seedz' in c.toml. Did you mean 'seed"),
        ({"seeds": []}, "Key 'seeds' in c.toml is (), which is not allowed"),
        ({"seeds": [-1]}, "Key 'seeds.0' in c.toml is -1, which is not allowed"),
        ({"seeds": [1, 1]}, "A seed stands twice in c.toml."),
        ({"tokens": 0}, "Key 'tokens' in c.toml is 0"),
        ({"entrants": {}}, "Key 'entrants' in c.toml is {}"),
        ({"entrants": "guided"}, "Key 'entrants' in c.toml is 'guided'"),
        ({"entrants": {"a b": "uniform"}}, "Key 'entrants.a b' in c.toml is 'a b'"),
        ({"entrants": {"a": {"tokens": 5}}}, "Key 'entrants.a.searcher' in c.toml is"),
        ({"entrants": {"a": {"searcher": "uniform", "token": 5}}}, "Unknown key 'token' in entrant 'a' of c.toml. Did you mean 'tokens'?"),
        ({"claims": [{**CLAIM, "gaol": 1}]}, "Unknown key 'gaol' in claim 1 of c.toml. Did you mean 'goal'?"),
        ({"claims": [{key: CLAIM[key] for key in CLAIM if key != "metric"}]}, "Key 'metric' is missing in claim 1 of c.toml."),
        ({"claims": [{**CLAIM, "metric": "bytes"}]}, "Key 'claims.0.metric' in c.toml is 'bytes'"),
        ({"claims": [{**CLAIM, "comparator": "=="}]}, "Key 'claims.0.comparator' in c.toml is '=='"),
        ({"claims": [{**CLAIM, "entrant": "lnog"}]}, "Unknown entrant 'lnog' in claim 'it wins' of c.toml. Did you mean 'long'?"),
        ({"claims": [{**CLAIM, "entrant": "uniform"}]}, "Claim 'it wins' of c.toml compares uniform with itself."),
        ({"claims": [{**CLAIM, "p": 0.01}]}, "Claim 'it wins' of c.toml has a p, but its test is of a lower fitness alone."),
        ({"claims": [{**CLAIM, "metric": "fitness", "p": 0.01}]}, "has a p, but its test is of a lower fitness alone."),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        make(**changed)
    assert message in str(raised.value)


def test_no_entrants_is_no_contest_and_a_contest_is_no_study() -> None:
    with pytest.raises(UsageError, match=r"has no table \[entrants\]"):
        Contest.make({"name": "c"}, "c.toml")
    with pytest.raises(UsageError, match=r"c\.toml is no contest: it has no table .* Run it with evopress search start FILE"):
        Contest.make({"name": "c", "searcher": "guided"}, "c.toml")
    with pytest.raises(UsageError, match=r"Unknown key 'entrantz' in c\.toml\. Did you mean 'entrants'"):
        Contest.make({"name": "c", "entrantz": ENTRANTS}, "c.toml")
    with pytest.raises(UsageError, match=r"c\.toml is a contest of several searchers. Run it with: evopress study run FILE"):
        Study.make({"name": "c", "entrants": ENTRANTS}, "c.toml")


def test_a_quick_contest_is_an_eighth_with_a_name_of_its_own() -> None:
    small = make(seeds=[3, 4], search_tokens=160_000, heldout_tokens=20_000).small()
    assert (small.name, small.seeds, small.quick) == ("c-quick", (3,), True)
    assert (small.study.search_tokens, small.study.heldout_tokens, small.study.calibration_tokens) == (20_000, 2500, 4096)
    assert [entrant.tokens for entrant in small.entrants.values()] == [16_384, 75_000, 16_384]
    assert small.base_digest != make().base_digest


def test_a_quick_contest_is_never_larger_and_never_too_small() -> None:
    tiny = {"calibration_tokens": 100, "search_tokens": 9000, "heldout_tokens": 2048}
    small = make(tokens=500, entrants={"uniform": "uniform"}, **tiny).small()
    assert {key: getattr(small.study, key) for key in tiny} == {**tiny, "search_tokens": QUICK_LEAST["search_tokens"]}
    assert small.entrants["uniform"].tokens == 500
