"""Scoring tasks leaves no trace: random states, environment, logs, streams and tokenizer as they were, and no network for local tasks."""

import logging
import os
import random
import socket
import sys

import numpy as np
import pytest
import torch
from task_cases import CONTINUATIONS, QUESTIONS, yaml_task

from evopress.fitness import tasks
from evopress.fitness.tasks import evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: tasks)")


def state_of_the_process(tokenizer):
    import datasets

    logger = logging.getLogger("lm_eval")
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "tokenizer": (tokenizer.pad_token, tokenizer("the cat")["input_ids"]),
        "log": (logger.level, logger.propagate, list(logger.handlers)),
        "counting": datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    }


def test_nothing_global_changes_and_nothing_is_printed(model, tokenizer, write, capfd, caplog):
    before = state_of_the_process(tokenizer)
    assert tokenizer.pad_token is None
    evaluate(model, tokenizer, [write(QUESTIONS), write(CONTINUATIONS, "next.jsonl")], num_fewshot=1)
    assert state_of_the_process(tokenizer) == before
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_a_fresh_import_of_lm_eval_sets_no_environment_variable(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: __import__("lm_eval") and Everything())
    before = dict(os.environ)
    tasks._harness()
    assert dict(os.environ) == before


class Everything:
    """Stands in for the modules of lm-eval that cost seconds and set nothing."""

    evaluate = HFLM = TaskManager = None


def test_local_tasks_do_not_touch_the_network(model, tokenizer, tmp_path, write, monkeypatch):
    import datasets
    import huggingface_hub.constants

    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in this test")

    for module in (datasets.config, huggingface_hub.constants):  # the tests run offline; a user does not
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = yaml_task(tmp_path / "mine", QUESTIONS)
    assert len(evaluate(model, tokenizer, ["quiz", write(QUESTIONS), write(CONTINUATIONS, "next.jsonl")], [folder])) == 5
    assert asked == []
