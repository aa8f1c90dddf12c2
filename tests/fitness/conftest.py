"""A tiny model with a word tokenizer, task files, and lm-eval's own list cut to one folder."""

import json
from pathlib import Path

import pytest
from task_cases import WORDS
from tiny import build

from evopress.fitness import tasks


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<unk>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model():
    return build("llama", vocab_size=3 + len(WORDS))


@pytest.fixture
def write(tmp_path):
    def write(rows, name="quiz.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def small_hub(monkeypatch):
    """lm-eval's own tasks, but only its folder `arc`: indexing all of them takes half a minute."""
    import lm_eval.tasks

    arc, whole = Path(lm_eval.tasks.__file__).parent / "arc", tasks._index

    def index(harness, folders, hub):
        return whole(harness, [*([arc] if hub else []), *folders], hub=False)

    monkeypatch.setattr(tasks, "_index", index)
