"""The head of a GGUF file: its metadata and the table of its tensors, read in milliseconds and without torch.

The format's own Python reader builds an array object for each of a vocabulary's 100,000 strings, which takes seconds.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOATS = {0: "F32", 1: "F16", 30: "BF16"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    shape: tuple[int, ...]  # in torch's order: the last dimension is contiguous
    kind: str  # F32, F16, BF16, or "" for blocks of any quantisation
    offset: int  # bytes from the start of the file


@dataclass(frozen=True, slots=True)
class Header:
    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> Header:
    """Raises ValueError, with the reason, for a damaged file and for versions other than 2 and 3."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data).header()
        except (struct.error, IndexError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"cut short or damaged: {error}") from None


class _Reader:
    """A position in the file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(MAGIC)

    def header(self) -> Header:
        version, tensor_count, entry_count = self.numbers("I", 1)[0], *self.numbers("Q", 2)
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}; versions 2 and 3 are read")
        metadata = {}
        for _ in range(entry_count):
            key = self.string()
            metadata[key] = self.value(self.numbers("I", 1)[0])
        entries = []
        for _ in range(tensor_count):
            name = self.string()
            shape = tuple(reversed(self.numbers("Q", self.numbers("I", 1)[0])))
            kind, offset = self.numbers("IQ", 1)
            entries.append((name, shape, FLOATS.get(kind, ""), offset))
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-self.at // alignment) * alignment
        tensors = tuple(TensorEntry(name, shape, kind, start + offset) for name, shape, kind, offset in entries)
        if tensors and max(tensor.offset for tensor in tensors) >= len(self.data):
            raise ValueError("cut short: tensors lie behind the end of the file")
        return Header(metadata, tensors)

    def numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        layout = "<" + kind * count if len(kind) > 1 else f"<{count}{kind}"
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.numbers("Q", 1)
        if self.at + length > len(self.data):
            raise ValueError("cut short inside a string")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind], 1)[0]
        inner, count = self.numbers("IQ", 1)
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        return [self.value(inner) for _ in range(count)]
