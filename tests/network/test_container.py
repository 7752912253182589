"""The safetensors container: hostile files, equal bytes, hashes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdlora.errors import AdapterError
from sdlora.network.container import LARGEST_HEADER, Container, write

TENSORS = {
    "b": torch.randn(3, 5).half(),
    "a": torch.randn(7),
    "alpha": torch.tensor(4.0),
    "none": torch.empty(0, 3),
    "c": torch.randn(2, 2).bfloat16(),
}


def raw(header: object, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of that header and payload, `length` its claim of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """A header's line for one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": (b"", "it is empty"),
    "seven bytes": (b"1234567", "shorter than its header"),
    "text": (b"# Adapters of mine", "no .safetensors"),
    "cut header": (raw({"a": tensor()}, b"12345678")[:20], "shorter than its header"),
    "cut payload": (raw({"a": tensor()}, b"1234"), "cut short"),
    "lying length": (raw({}, length=2**60), "shorter than its header"),
    "surplus": (raw({"a": tensor()}, b"123456789"), "1 bytes follow"),
    "giant shape": (raw({"a": tensor(shape=(2**40, 2**40))}, b"12345678"), "another size"),
    "negative shape": (raw({"a": tensor(shape=(-2, -1))}, b"12345678"), "impossible"),
    "shape of text": (raw({"a": tensor(shape=("2",))}, b"12345678"), "impossible"),
    "shape of truth": (raw({"a": tensor(shape=(True, 2))}, b"12345678"), "impossible"),
    "thousand sizes": (raw({"a": tensor(shape=(1,) * 1000)}, b"1234"), "impossible"),
    "offsets back": (raw({"a": tensor(offsets=(8, 0))}, b"12345678"), "another size"),
    "one offset": (raw({"a": tensor(offsets=(8,))}, b"12345678"), "no dtype, shape and offsets"),
    "overlap": (raw({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"123456781234"), "overlap or leave gaps"),
    "gap": (raw({"a": tensor(offsets=(4, 12))}, b"123456781234"), "overlap or leave gaps"),
    "unknown dtype": (raw({"a": tensor("F4")}, b"12345678"), "number format F4"),
    "line of text": (raw({"a": "tensor"}), "no dtype, shape and offsets"),
    "list": (raw([1, 2]), "no table"),
    "no JSON": (raw(b"{]"), "no JSON"),
    "no UTF-8": (raw(b"\xff\xfe{}"), "no JSON"),
    "twice": (raw(b'{"a":1,"a":2}'), '"a" twice'),
    "nested": (raw(b"[" * 100_000), "nested"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "table of texts"),
    "metadata list": (raw({"__metadata__": [1]}), "table of texts"),
    "zip pickle": (b"PK\x03\x04" + b"x" * 100, "pickle"),
    "old pickle": (b"\x80\x02}q\x00." + b"x" * 100, "pickle"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=words) as caught:
        Container.open(path)
    assert str(path) in caught.value.message and "\n" not in str(caught.value)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER + 100)
    with pytest.raises(AdapterError, match="at most"):
        Container.open(path)


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(AdapterError, match="cannot be read"):
            Container.open(path)


def test_written_tensors_come_back_and_safetensors_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {"ss_a": "<b>ü</b>"})
    held = Container.open(path)
    ours, theirs = held.read(held.entries), load_file(path)
    assert held.metadata["ss_a"] == "<b>ü</b>"
    for name, expected in TENSORS.items():
        assert torch.equal(ours[name], expected) and torch.equal(theirs[name], expected)
        assert ours[name].dtype == expected.dtype


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    texts = {"ss_a": "1", "b": "2"}
    write(tmp_path / "1", TENSORS, texts)
    write(tmp_path / "2", dict(reversed(TENSORS.items())), dict(reversed(texts.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_model_hash_is_that_of_the_payload(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, TENSORS, {"ss_a": "1"})
    content = path.read_bytes()
    held = Container.open(path)
    expected = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert held.metadata["sshs_model_hash"] == held.payload_hash() == expected


def test_the_legacy_hash_is_that_of_the_file_with_ss_texts_only(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(600_000)}
    write(tmp_path / "whole", tensors, {"ss_a": "1", "modelspec.title": "x"})
    save_file(tensors, tmp_path / "plain", metadata={"ss_a": "1"})
    plain = (tmp_path / "plain").read_bytes()
    # sd-scripts: first 8 hex of the SHA-256 of 64 KiB from 1 MiB on
    expected = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    assert Container.open(tmp_path / "whole").metadata["sshs_legacy_hash"] == expected


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_read_without_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_file({"a": every}, tmp_path / "x")
    read = Container.open(tmp_path / "x").read(["a"])["a"]
    assert torch.equal(read.float().nan_to_num(1e9), every.float().nan_to_num(1e9))
