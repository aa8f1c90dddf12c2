import errno

import pytest
import torch

from evopress.api import Cost, Level, Site, StorageError, Variant
from evopress.bank.bank import Bank, Decoder, Recipe

SITE = Site("model.layers.0.mlp.up_proj", "linear", (4, 6), 0, None)
LEVEL = Level.of("planted", bits=16)


def variant(seed=0):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).half()
    return Variant(SITE, LEVEL, "dense", {"weight": weight}, Cost(48, 24))


def test_round_trip_keeps_bits_cost_and_error(tmp_path):
    bank = Bank(tmp_path)
    bank.put("ab" * 32, variant(), 0.125)
    found = bank.get("ab" * 32, SITE, LEVEL)
    assert torch.equal(found.tensors["weight"], variant().tensors["weight"])
    assert (found.cost, found.format, bank.error("ab" * 32)) == (Cost(48, 24), "dense", 0.125)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["ab" * 32 + ".safetensors"]


@pytest.mark.parametrize("position", [-1, 60, 8])
def test_a_flipped_bit_anywhere_is_found(tmp_path, position):
    bank = Bank(tmp_path)
    bank.put("ab" * 32, variant(), 0.1)
    path = bank.path("ab" * 32)
    data = bytearray(path.read_bytes())
    data[position] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        bank.get("ab" * 32, SITE, LEVEL)


def test_a_cut_file_is_damaged_and_a_missing_one_is_missing(tmp_path):
    bank = Bank(tmp_path)
    bank.put("ab" * 32, variant(), 0.1)
    path = bank.path("ab" * 32)
    path.write_bytes(path.read_bytes()[:40])
    for read in (lambda: bank.get("ab" * 32, SITE, LEVEL), lambda: bank.error("ab" * 32)):
        with pytest.raises(StorageError, match="Delete that file"):
            read()
    with pytest.raises(StorageError, match="missing"):
        bank.get("cd" * 32, SITE, LEVEL)


def test_quota_is_checked_before_writing(tmp_path):
    bank = Bank(tmp_path, quota_bytes=600)
    bank.put("ab" * 32, variant(), 0.1)
    with pytest.raises(StorageError, match="quota of 600 bytes"):
        bank.put("cd" * 32, variant(), 0.1)
    assert "cd" * 32 not in bank
    assert Bank(tmp_path).used_bytes == bank.path("ab" * 32).stat().st_size


@pytest.mark.parametrize(("code", "text"), [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "EVOPRESS_HOME")])
def test_disk_errors_are_told_and_leave_no_partial_file(tmp_path, monkeypatch, code, text):
    bank = Bank(tmp_path)

    def fail(*_):
        raise OSError(code, "planted")

    monkeypatch.setattr("evopress.files.os.fsync", fail)
    with pytest.raises(StorageError, match=text):
        bank.put("ab" * 32, variant(), 0.1)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_key_depends_on_every_input():
    recipe = Recipe("model", "calibration")
    other = Site("model.layers.1.mlp.up_proj", "linear", (4, 6), 1, None)
    keys = {
        recipe.key(SITE, LEVEL, 1), recipe.key(other, LEVEL, 1), recipe.key(SITE, Level.of("planted", bits=8), 1),
        recipe.key(SITE, LEVEL, 2), Recipe("x", "calibration").key(SITE, LEVEL, 1), Recipe("model", "x").key(SITE, LEVEL, 1),
    }  # fmt: skip
    assert len(keys) == 6


def test_decoder_decodes_once_and_keeps_to_its_limit():
    reads = []

    def read(site, level):
        reads.append(level)
        return Variant(site, level, "dense", {"weight": torch.ones(4, 6).half()}, Cost(48, 24))

    decoder = Decoder(read, torch.float32, limit_bytes=2 * 96)
    for bits in (1, 1, 2, 1, 3, 1, 2):
        assert decoder(SITE, Level.of("planted", bits=bits)).dtype == torch.float32
    assert [level.option("bits") for level in reads] == [1, 2, 3, 2]
