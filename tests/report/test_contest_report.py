"""The document of a contest as a file, its leaderboard, its curves, and the two pictures."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from planted_contest import contest, document, run

from evopress.api import DENSE, Level, NotFound, Profile, UsageError
from evopress.report.contest_document import (
    check_belongs,
    check_same_bank,
    final_profile,
    packed,
    read_document,
    render,
    write_document,
)
from evopress.report.contest_html import even_ticks, log_ticks, page, write_html
from evopress.report.contest_png import write_png
from evopress.report.contest_table import cells, header, notes, standings, title
from evopress.report.curves import COLOURS, Curve, curves, extent, heights, style
from evopress.report.labels import spread

CONTEST = contest(seeds=(0, 1))
RUNS = [
    run("still", 0, [(0, (0.9, 0.7))], "finished"),
    run("slow", 0, [(500, (1.2, 1.0)), (1000, (0.6, 0.4))]),
    run("slow", 1, [(600, (1.1, 0.7)), (1000, (0.8, 0.6))]),
    run("fast", 0, [(100, (0.9, 0.5)), (200, (0.5, 0.3))]),
]
DOCUMENT = document(CONTEST, RUNS)


# The file -------------------------------------------------------------------------------------------------------------------------------


def test_a_document_is_read_as_written_with_sorted_keys_and_few_lines_a_run(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    write_document(DOCUMENT, file)
    assert read_document(file) == DOCUMENT
    text = file.read_text()
    keys = re.findall(r'^"(\w+)":', text, re.MULTILINE)
    assert keys == sorted(DOCUMENT)
    assert len(text.splitlines()) < 8 * len(RUNS) + len(keys) + 4
    assert text == render(json.loads(text))
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    assert json.loads(render({**DOCUMENT, "runs": []}))["runs"] == []


def test_a_profile_survives_its_numbers() -> None:
    levels = ["dense"]
    profile = Profile((("a", Level.of("gptq", bits=3, group=64)), ("b", DENSE), ("c", Level.of("gptq", bits=3, group=64))))
    text = packed(profile, levels)
    assert (text, levels) == ("1 0 1", ["dense", "gptq(bits=3,group=64)"])
    made = {**DOCUMENT, "levels": levels, "sites": ["a", "b", "c"]}
    assert final_profile(made, {**RUNS[0], "final": text}) == profile
    with pytest.raises(ValueError, match="shorter"):
        final_profile(made, {**RUNS[0], "final": "1 0"})


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"There is no result .*no\.json"):
        read_document(tmp_path / "no.json")
    for text, message in (("{", "cannot be read as JSON"), ("[]", "is not the result of a contest"), ('{"rows": []}', "is not the result")):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_document(tmp_path / "odd.json")


def test_a_document_of_another_contest_or_bank_is_refused_with_what_differs() -> None:
    check_belongs(DOCUMENT, CONTEST, Path("c.json"))
    check_belongs(DOCUMENT, contest(labels=("fast", "new", "slow"), seeds=(5,)), Path("c.json"))
    study = CONTEST.study.model_copy(update={"window": 99})
    with pytest.raises(UsageError, match=r"c.json is the result of another contest than planted. Different: window: 512 there, 99 now"):
        check_belongs(DOCUMENT, CONTEST.model_copy(update={"study": study}), Path("c.json"))
    check_same_bank(DOCUMENT, "m" * 64, "r" * 64, Path("c.json"))
    with pytest.raises(UsageError, match="was measured on bank rrrrrrrrrrrr, and this is xxxxxxxxxxxx"):
        check_same_bank(DOCUMENT, "m" * 64, "x" * 64, Path("c.json"))
    with pytest.raises(UsageError, match="was measured on model mmmmmmmmmmmm"):
        check_same_bank(DOCUMENT, "x" * 64, "r" * 64, Path("c.json"))


# The table ------------------------------------------------------------------------------------------------------------------------------


def test_standings_are_means_and_medians_over_seeds_best_first() -> None:
    rows = standings(DOCUMENT)
    assert [row.label for row in rows] == ["fast", "slow", "still"]
    slow = rows[1]
    assert slow.fitness.mean == pytest.approx(((0.6 + 0.8) / 2 + (0.4 + 0.6) / 2) / 2)
    assert (slow.tokens, slow.evaluations, slow.seeds, slow.fitness.n) == (1000, 100, (0, 1), 2)
    assert rows[2].seeds == ()
    written = [cells(DOCUMENT, row) for row in rows]
    assert {len(row) for row in written} == {len(header(DOCUMENT))}
    assert written[2][2] == "any"
    assert written[0][header(DOCUMENT).index("bank seconds")] == "1.0"
    assert title(DOCUMENT) == "Tiny at bits=3.0, gptq(bits=2..4,group=64) · 2 held-out documents, 95 % intervals"
    assert title({**DOCUMENT, "quick": True}).startswith("quick, no evidence: ")


def test_the_bank_is_told_even_when_nobody_timed_it() -> None:
    assert "100 calibration tokens, 5,000 bytes, built in 1 s" in notes(DOCUMENT)[0]
    unknown = {**DOCUMENT, "bank": {**DOCUMENT["bank"], "seconds": None}}
    assert "built in a time nobody noted" in notes(unknown)[0]
    assert cells(unknown, standings(unknown)[0])[header(unknown).index("bank seconds")] == "unknown"


# Curves ---------------------------------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_median_of_steps_with_a_band() -> None:
    still, slow, fast = curves(DOCUMENT, "tokens")
    assert still == Curve("still", (0,), (0.8,), (0.8,), (0.8,), 1, True)
    # From where both seeds have a value: at 600 they stand at 1.1 and 0.9, at 1000 at 0.5 and 0.7.
    assert slow.x == (600, 1000)
    assert slow.middle == pytest.approx((1.0, 0.6))
    assert slow.low == pytest.approx((0.9, 0.5))
    assert slow.high == pytest.approx((1.1, 0.7))
    assert (fast.x, fast.level, fast.seeds) == ((100, 200), False, 1)
    assert curves(DOCUMENT, "seconds")[2].x == (1.0, 2.0)


def test_a_search_that_ended_early_is_drawn_on() -> None:
    made = document(CONTEST, [run("slow", 0, [(100, (1.0, 1.0))]), run("slow", 1, [(100, (2.0, 2.0)), (300, (0.4, 0.4))])])
    (curve,) = curves(made, "tokens")
    assert (curve.x, curve.middle) == ((100, 300), (1.5, 0.7))


def test_axes_hold_everything() -> None:
    found = curves(DOCUMENT, "tokens")
    low, high = extent(found, 5000)
    assert low < 100
    assert high > 5000
    assert extent(found[:1], None) == (1.0, 10.0)
    bottom, top, logarithmic = heights(found)
    assert (bottom < 0.4, top > 1.1, logarithmic) == (True, True, False)
    wide = [Curve("a", (1,), (5.0,), (0.5,), (9.0,), 2, False)]
    assert heights(wide)[2]
    assert heights([Curve("a", (1,), (0.0,), (0.0,), (0.0,), 1, True)]) == (-0.06, 0.06, False)


def test_styles_differ() -> None:
    assert len({style(number) for number in range(3 * len(COLOURS))}) == 3 * len(COLOURS)


def test_labels_are_apart_within_bounds_and_near() -> None:
    assert spread([0.5], 0.1, 0, 1) == [0.5]
    assert spread([0.2, 0.8], 0.1, 0, 1) == [0.2, 0.8]
    assert spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    assert spread([0.0, 0.0, 1.0], 0.1, 0, 1) == pytest.approx([0.0, 0.1, 1.0])
    rng = random.Random(0)
    for _ in range(200):
        places = [rng.random() for _ in range(rng.randint(1, 15))]
        found = spread(places, 0.06, 0.0, 1.0)
        ranked = sorted(found)
        assert all(b - a >= 0.06 - 1e-9 for a, b in pairwise(ranked))
        assert min(found) >= -1e-9
        assert max(found) <= 1 + 1e-9
        order = sorted(range(len(places)), key=lambda at: places[at])
        assert [found[at] for at in order] == ranked
    assert sorted(spread([0.5] * 30, 0.06, 0, 1)) == pytest.approx([number / 29 for number in range(30)])


def test_ticks_are_round_and_within() -> None:
    assert log_ticks(3000, 2_000_000) == [3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    assert log_ticks(0.5, 20_000) == [1, 10, 100, 1000, 10_000]
    assert even_ticks(0.55, 1.45) == [0.6, 0.8, 1.0, 1.2, 1.4]


# Pictures -------------------------------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_names_everyone(tmp_path: Path) -> None:
    write_html(DOCUMENT, tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert text == page(DOCUMENT)
    assert not re.search(r"(?:src|href)=|https?://(?!www\.w3\.org)|@import", text)
    panels = re.findall(r"<svg viewBox=\"0 0 640.*?</svg>", text, re.DOTALL)
    assert len(panels) == 2
    for panel in panels:
        tree = ElementTree.fromstring(panel)
        words = [element.text for element in tree.iter("text")]
        assert {"still", "slow", "fast", "held-out KL (nats/token), lower is better"} <= set(words)
        assert len(list(tree.iter("polygon"))) == 1, "one entrant has several seeds"
        assert len(list(tree.iter("polyline"))) == 2
    assert "bank: 100 calibration tokens" in panels[0]
    assert "bank: 1 seconds" in panels[1]
    assert "slow: 0.6000 [0.5000, 0.7000] over 2 seeds\n1,000 token-forwards" in text
    for row in standings(DOCUMENT):
        assert "".join(f"<td>{cell}</td>" for cell in cells(DOCUMENT, row)) in text


def test_what_is_written_into_a_page_is_escaped() -> None:
    odd = json.loads(json.dumps(DOCUMENT).replace('"Tiny"', '"<b>&"'))
    assert "&lt;b&gt;&amp;" in page(odd)
    assert "<b>" not in page(odd)


@pytest.mark.parametrize("seconds", [1.0, None])
def test_the_picture_is_drawn(tmp_path: Path, seconds: float | None) -> None:
    write_png({**DOCUMENT, "bank": {**DOCUMENT["bank"], "seconds": seconds}}, tmp_path / "c.png")
    data = (tmp_path / "c.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") > 1500


def test_an_unknown_cost_of_the_bank_is_not_drawn() -> None:
    assert "bank: 1 seconds" not in page({**DOCUMENT, "bank": {**DOCUMENT["bank"], "seconds": None}})
