"""The map of a profile: marks, shadows, mean bits against a count by hand, width and colour."""

from __future__ import annotations

import pytest

from evopress.api import ABSENT, DENSE, DROP, Level, Profile, Site, UsageError
from evopress.report.profile_map import build_map, level_bits, map_lines


def llama(depths: int) -> list[Site]:
    sites = []
    for depth in range(depths):
        block = f"model.layers.{depth}"
        sites += [
            Site(block, "block", (0, 0), depth, None),
            Site(f"{block}.self_attn", "attention", (0, 0), depth, block),
            Site(f"{block}.self_attn.q_proj", "linear", (16, 64), depth, f"{block}.self_attn"),
            Site(f"{block}.mlp", "mlp", (0, 0), depth, block),
            Site(f"{block}.mlp.down_proj", "linear", (8, 128), depth, f"{block}.mlp"),
        ]
    return sites


def profile(sites: list[Site], levels: dict[str, str]) -> Profile:
    """Dense everywhere but at sites whose name ends so."""

    def level(site: Site) -> Level:
        return next((Level.parse(text) for ending, text in levels.items() if site.name.endswith(ending)), DENSE)

    return Profile.of({site.name: level(site) for site in sites})


def test_rows_are_roles_and_columns_are_depths() -> None:
    sites = llama(3)
    levels = {
        "0.self_attn.q_proj": "gptq(bits=4,group=64)",
        "1.self_attn.q_proj": "absent",
        "1.self_attn": "drop",
        "2.self_attn.q_proj": "gptq(bits=3,group=64)",
        "0.mlp.down_proj": "sparsegpt(sparsity=0.25)",
    }
    found = build_map(profile(sites, levels), sites)
    assert found.depths == (0, 1, 2)
    assert [(row.label, [cell.text for cell in row.cells]) for row in found.rows] == [
        ("self_attn", ["·", "x", "·"]),
        ("q_proj", ["4", "", "3"]),
        ("down_proj", ["25", "·", "·"]),
    ]
    assert found.legend == {
        "00-99": "per cent zeros, sparsegpt ×1",
        "3": "gptq(bits=3,group=64) ×1",
        "4": "gptq(bits=4,group=64) ×1",
        "x": "dropped ×1",
        "·": "dense ×2",
        "blank": "under a dropped parent",
    }
    lines = map_lines(found)
    assert lines[0] == "depth       0  1  2   mean bits"
    assert lines[2] == "q_proj      4     3       2.583"


def test_mean_bits_count_every_stored_byte() -> None:
    """q: 16 rows of 32 B codes, 2 B scale, 1 B zero; nothing; 24+2+1 B. down: mask 16 B a row and 16 bit a kept weight; dense twice."""
    sites = llama(3)
    levels = {
        "0.self_attn.q_proj": "gptq(bits=4,group=64)",
        "1.self_attn.q_proj": "absent",
        "1.self_attn": "drop",
        "2.self_attn.q_proj": "gptq(bits=3,group=64)",
        "0.mlp.down_proj": "sparsegpt(sparsity=0.25)",
    }
    rows = {row.label: row for row in build_map(profile(sites, levels), sites).rows}
    assert rows["q_proj"].mean_bits == pytest.approx(8 * 16 * (35 + 0 + 27) / (3 * 1024))
    assert rows["down_proj"].mean_bits == pytest.approx((8 * (8 * 16 + 2 * 768) + 2 * 16 * 1024) / (3 * 1024))
    assert rows["self_attn"].mean_bits is None


def test_level_bits_of_kinds_it_does_not_know() -> None:
    site = Site("a", "linear", (16, 64), 0, None)
    assert level_bits(site, Level.parse("svd(rank=4)")) is None
    assert level_bits(site, Level.parse("gptq(bits=3,group=48)")) is None  # 48 does not divide 64
    assert level_bits(site, Level.parse("both(bits=3,group=64,sparsity=0.5)")) is None
    assert [level_bits(site, level) for level in (DENSE, DROP, ABSENT)] == [16, 0, 0]


def test_unknown_levels_get_letters_and_stay_linear_rows() -> None:
    sites = llama(3)
    found = build_map(
        profile(
            sites,
            {"0.mlp.down_proj": "svd(rank=4)", "1.mlp.down_proj": "svd(rank=8)", "2.self_attn": "drop", "2.self_attn.q_proj": "absent"},
        ),
        sites,
    )
    assert [row.label for row in found.rows] == ["self_attn", "q_proj", "down_proj"]
    assert [cell.text for cell in found.rows[2].cells] == ["a", "b", "·"]
    assert found.rows[2].mean_bits is None
    assert (found.legend["a"], found.legend["b"]) == ("svd(rank=4) ×1", "svd(rank=8) ×1")


def test_a_letter_is_never_the_mark_of_a_drop() -> None:
    sites = llama(30)
    levels = {f".{depth}.mlp.down_proj": f"svd(rank={depth + 1})" for depth in range(30)}
    marks = [cell.text for cell in build_map(profile(sites, levels), sites).rows[-1].cells]
    assert len(set(marks)) == 30
    assert "x" not in marks


def test_two_methods_at_the_same_bits_share_a_mark_and_the_legend_names_both() -> None:
    sites = llama(2)
    found = build_map(profile(sites, {"0.mlp.down_proj": "gptq(bits=3,group=64)", "1.mlp.down_proj": "rtn(bits=3,group=32)"}), sites)
    assert found.legend["3"] == "gptq(bits=3,group=64) ×1, rtn(bits=3,group=32) ×1"


def test_a_role_in_two_places_names_its_parent() -> None:
    sites = [
        Site("h.0", "block", (0, 0), 0, None),
        Site("h.0.attn", "attention", (0, 0), 0, "h.0"),
        Site("h.0.attn.c_proj", "linear", (8, 8), 0, "h.0.attn"),
        Site("h.0.mlp", "mlp", (0, 0), 0, "h.0"),
        Site("h.0.mlp.c_proj", "linear", (8, 8), 0, "h.0.mlp"),
    ]
    found = build_map(profile(sites, {"h.0": "drop", "attn": "absent", "mlp": "absent", "c_proj": "absent"}), sites)
    assert [(row.label, row.cells[0].text) for row in found.rows] == [("block", "x"), ("attn.c_proj", ""), ("mlp.c_proj", "")]


def test_experts_share_a_cell() -> None:
    sites = [Site("l.0.mlp", "mlp", (0, 0), 0, None)]
    sites += [Site(f"l.0.mlp.experts.down_proj[{i}]", "linear", (8, 64), 0, "l.0.mlp") for i in range(4)]
    same = {f"[{i}]": "gptq(bits=3,group=64)" for i in range(4)}
    found = build_map(profile(sites, same), sites)
    assert [(row.label, row.cells[0].text) for row in found.rows] == [("down_proj", "3")]
    mixed = build_map(profile(sites, same | {"[2]": "gptq(bits=2,group=64)"}), sites)
    assert mixed.rows[0].cells[0].text == "~"
    assert mixed.rows[0].mean_bits == pytest.approx((3 * 3.375 + 2.375) / 4)
    assert mixed.legend["~"] == "several matrices at different levels"


def test_shares_are_always_two_digits() -> None:
    sites = llama(2)
    found = build_map(profile(sites, {"0.mlp.down_proj": "wanda(sparsity=0.04)", "1.mlp.down_proj": "wanda(sparsity=0.999)"}), sites)
    assert [cell.text for cell in found.rows[-1].cells] == ["04", "99"]
    stepped = build_map(profile(sites, {"0.mlp.down_proj": "wanda(sparsity=0.5,step=-1,weights=256)"}), sites)
    assert stepped.rows[-1].cells[0].text == "25"


def test_a_deep_model_continues_below() -> None:
    sites = llama(40)
    found = build_map(profile(sites, {"q_proj": "gptq(bits=3,group=64)"}), sites)
    whole, folded = map_lines(found), map_lines(found, width=60)
    assert max(map(len, whole)) > 60
    assert max(map(len, folded)) <= 60
    assert [line for line in folded if line.startswith("depth")][-1].endswith("mean bits")
    assert sum(line.count(" 3") for line in folded if line.startswith("q_proj")) >= 40


def test_colour_changes_nothing_else() -> None:
    import re

    sites = llama(3)
    found = build_map(profile(sites, {"0.self_attn.q_proj": "gptq(bits=2,group=64)", "1.mlp": "drop", "1.mlp.down_proj": "absent"}), sites)
    colored = map_lines(found, color=True)
    assert "\x1b[31m2\x1b[0m" in "\n".join(colored)
    assert "\x1b" not in "\n".join(map_lines(found))
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in colored] == map_lines(found)


def test_a_profile_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"names 10 sites and the model has 15; 'model.layers.2' is missing"):
        build_map(profile(llama(2), {}), llama(3))
    with pytest.raises(UsageError, match="names 15 sites and the model has 10"):
        build_map(profile(llama(3), {}), llama(2))
