"""Profiles: text form, digest, lookup, and errors with line numbers."""

from __future__ import annotations

import pytest

from evopress.api import DENSE, DROP, Level, Profile, UsageError

TEXT = "a.q: gptq(bits=3,group=64)\na.k: dense\nb: drop"


def test_text_form_round_trips() -> None:
    profile = Profile.parse(TEXT)
    assert str(profile) == TEXT
    assert Profile.parse(str(profile)) == profile
    assert profile["a.q"] == Level.of("gptq", bits=3, group=64)
    assert len(profile) == 3
    assert [site for site, _ in profile] == ["a.q", "a.k", "b"]


def test_comments_and_blank_lines_are_skipped() -> None:
    assert Profile.parse("# winner\n\na.q: dense  # kept\n") == Profile.of({"a.q": DENSE})


def test_the_digest_depends_on_sites_levels_and_nothing_else() -> None:
    profile = Profile.parse(TEXT)
    assert profile.digest == Profile.parse("# x\n" + TEXT).digest
    assert profile.digest != Profile.parse(TEXT.replace("bits=3", "bits=4")).digest
    assert len(profile.digest) == 64


def test_profiles_are_hashable() -> None:
    assert len({Profile.of({"a": DROP}), Profile.of({"a": DROP}), Profile.of({"a": DENSE})}) == 2


@pytest.mark.parametrize(
    ("text", "message"), [("a dense", "Line 1"), ("a: dense\na: drop", "Line 2 .* again"), (": dense", "Line 1"), ("a: 3x", "Cannot read")]
)
def test_damaged_text_names_the_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Profile.parse(text)


def test_an_unknown_site_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Profile.of({"a": DENSE})["b"]
