import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import UsageError
from evopress.data.tokens import ROLES, build, deal


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


def test_too_few_documents_for_three_roles():
    with pytest.raises(UsageError, match=r"has 2 document\(s\)"):
        deal(2, 0)
