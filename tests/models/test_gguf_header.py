from pathlib import Path

import pytest
from gguf import GGUFReader

from tests.models.gguf_files import write_gguf
from tunesmith.models.gguf_header import is_gguf, read_header


def test_the_same_as_the_formats_own_reader(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama, kind="Q8_0")
    header, oracle = read_header(path), GGUFReader(path)
    for key, field in oracle.fields.items():
        if not key.startswith("GGUF."):
            assert header.metadata[key] == field.contents(), key
    assert len(header.tensors) == len(oracle.tensors)
    for ours, theirs in zip(header.tensors, oracle.tensors, strict=True):
        assert (ours.name, ours.offset) == (theirs.name, theirs.data_offset)
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert ours.kind == ("F32" if theirs.tensor_type.name == "F32" else "")


def test_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF\x01\x00\x00\x00" + bytes(16))
    assert is_gguf(path)
    with pytest.raises(ValueError, match="version 1"):
        read_header(path)
    path.write_bytes(b"GGML")
    assert not is_gguf(path)
