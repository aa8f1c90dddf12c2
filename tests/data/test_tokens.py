import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import UsageError
from evopress.data import sources
from evopress.data.tokens import ROLES, build, overlap


def encode(text):
    return [ord(letter) for letter in text]


def texts(count, length):
    return [chr(1000 + i) * length for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(20, 90), st.integers(8, 32), st.integers(0, 5), st.data())
def test_roles_never_share_a_document_and_totals_are_exact(count, length, window, seed, data):
    seen = {}
    for role in ROLES:
        tokens = data.draw(st.integers(2, 12))
        found = build("planted", texts(count, length), encode, role, tokens, window, seed)
        assert found.tokens == tokens
        assert all(2 <= len(document) <= window for document in found.documents)
        for document, origin in zip(found.documents, found.origins, strict=True):
            assert set(document) == {1000 + origin}
            seen.setdefault(origin, role)
            assert seen[origin] == role


def test_one_window_of_each_document_before_a_second_of_any():
    found = build("planted", texts(30, 400), encode, "search", 12 * 100, 100, 0)
    assert len(set(found.origins)) == 12


def test_same_seed_same_tokens_and_other_seed_other_tokens():
    arguments = ("planted", texts(30, 200), encode, "search", 300, 50)
    assert build(*arguments, 0).digest == build(*arguments, 0).digest
    assert build(*arguments, 0).digest != build(*arguments, 1).digest


def test_b6_more_tokens_than_there_are_is_an_error():
    with pytest.raises(UsageError, match=r"asks for 100,000 tokens.*holds"):
        build("planted", texts(6, 50), encode, "heldout", 100_000, 16, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=2), st.integers(8, 32), st.integers(0, 5))
def test_one_or_two_documents_are_cut_into_one_stretch_a_role(lengths, window, seed):
    """No token in two roles, and each role reads an unbroken part of the text."""
    letters = iter(range(1000, 2000))
    long = ["".join(chr(next(letters)) for _ in range(length)) for length in lengths]
    usable = sum(length // window + (length % window >= max(2, window // 2)) for length in lengths)
    if usable < 3:
        with pytest.raises(UsageError, match=rf"has {len(long)} document\(s\) with {usable} window\(s\) of {window} tokens"):
            build("planted", long, encode, "search", 2, window, seed)
        return
    ranges = []
    for role in ROLES:
        with pytest.raises(UsageError, match=r"holds ([\d,]+)") as caught:
            build("planted", long, encode, role, 10**6, window, seed)
        whole = int(re.search(r"at most ([\d,]+)", str(caught.value)).group(1))
        found = build("planted", long, encode, role, whole, window, seed)
        assert found.tokens == whole
        assert len(set(found.origins)) == len(found.documents), "each window counts by itself"
        ranges.append((min(map(min, found.documents)), max(map(max, found.documents))))
        assert [document[0] for _, document in sorted(zip(found.origins, found.documents, strict=True))] == sorted(
            document[0] for document in found.documents
        )
    for (_, end), (start, _) in pairwise(ranges):
        assert end < start


def test_windows_of_one_document_have_one_origin():
    found = build("planted", texts(9, 400), encode, "heldout", 600, 100, 0)
    assert len(found.documents) == 6 > len(set(found.origins)) == 2


def test_the_default_text_keeps_its_tokens():
    """Measurements are stored under these digests: a change here makes every stored result of the default text unreachable."""
    texts = sources.read("sotu")

    def bytes_of(text):
        return text[:20_000].encode()

    digests = [build("sotu", texts, bytes_of, role, 16_384, 512, 0).digest[:12] for role in ROLES]
    assert digests == ["5f380d69d03e", "50223b819f0f", "4a7c32e3f797"]


def test_sets_that_may_share_text_are_told_from_those_that_cannot():
    def drawn(documents, role, seed=0, window=16):
        return build("planted", documents, encode, role, 60, window, seed).texts

    many, one = texts(12, 40), ["".join(chr(1000 + i % 90) for i in range(900))]
    for documents in (many, one):
        assert not overlap(drawn(documents, "search"), drawn(documents, "heldout"))
        assert overlap(drawn(documents, "search"), drawn(documents, "search"))
    assert overlap(drawn(many, "search", seed=1), drawn(many, "heldout"))
    assert overlap(drawn(many[::-1], "search"), drawn(many, "heldout")), "by what stands in them, not by their numbers"
    assert overlap(drawn(one, "search", window=20), drawn(one, "heldout")), "cut otherwise, nobody knows"
    assert overlap([drawn(one, "search")[0].partition("@")[0]], drawn(one, "heldout")), "a whole document, and a stretch of it"
    assert not overlap(drawn(many, "search"), drawn(texts(24, 50)[12:], "search"))
