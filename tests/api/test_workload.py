"""Workloads: what a time is of, as written and as read."""

from __future__ import annotations

import re

import pytest

from evopress.api import UsageError
from evopress.api.workload import CONTEXT, Workload


@pytest.mark.parametrize(
    ("text", "workload", "tokens"),
    [
        ("", Workload("decode", 1, CONTEXT), 1),
        ("decode", Workload("decode", 1, 512), 1),
        ("prefill", Workload("prefill", 1, 512), 512),
        ("prefill,batch=4", Workload("prefill", 4, 512), 2048),
        ("batch=4", Workload("decode", 4, 512), 4),
        (" Context=64 , PREFILL,,batch=2,", Workload("prefill", 2, 64), 128),
        ("decode,context=999999", Workload("decode", 1, 999_999), 1),
    ],
)
def test_a_workload_is_read_and_reads_itself(text: str, workload: Workload, tokens: int) -> None:
    found = Workload.parse(text, "--workload")
    assert found == workload
    assert found.tokens == tokens
    assert Workload.parse(str(found), "what it printed") == found


def test_it_prints_everything() -> None:
    assert str(Workload.parse("prefill", "")) == "prefill,batch=1,context=512"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefil", "Unknown workload 'prefil' in --workload. Did you mean 'prefill'? Known: batch=N, context=N, decode, prefill."),
        ("prefill=2", "Unknown workload 'prefill=2' in --workload."),
        ("batch", "Unknown workload 'batch' in --workload. Did you mean 'batch=N'?"),
        ("batch=0", "batch='0' in --workload is not a positive whole number. Write e.g. batch=4."),
        ("batch=-1", "is not a positive whole number"),
        ("batch=1.5", "is not a positive whole number"),
        ("context=", "context='' in --workload is not a positive whole number. Write e.g. context=4."),
        ("context=1000000", "is not a positive whole number"),
    ],
)
def test_bad_workloads_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Workload.parse(text, "--workload")
