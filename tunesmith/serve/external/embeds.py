"""Virtual tokens in front of a prompt as vLLM takes them: one tensor of vectors for all of it, in place of ids.

A folder beside them tells where the embedding's rows are: `embedding.json` names the file, the tensor, and by what the class multiplies
its rows. Rows are read as they are asked for; the table of a large vocabulary is not held.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


class Embeds:
    """The virtual tokens of one adapter over one base."""

    def __init__(self, folder: Path, table: Path):
        """`folder` holds embedding.json and the base in model/; `table` a tensor virtual_tokens [P, C]."""
        where = json.loads((folder / "embedding.json").read_text(encoding="utf-8"))
        self._file, self._tensor, self._scale = folder / "model" / where["file"], where["tensor"], float(where["scale"])
        self.table_PC = load_file(table)["virtual_tokens"].float()

    def __len__(self) -> int:
        return len(self.table_PC)

    def vectors(self, ids: Sequence[int]) -> Tensor:
        """[P + T, C] in fp32, in the space of what the embedding gives."""
        with safe_open(self._file, framework="pt") as content:
            rows = content.get_slice(self._tensor)
            rows_TC = torch.cat([rows[token : token + 1] for token in ids]).float() * self._scale
        return torch.cat([self.table_PC, rows_TC])

    def text(self, ids: Sequence[int]) -> str:
        """The same as a request carries it: a tensor file of torch's in base64."""
        file = io.BytesIO()
        torch.save(self.vectors(ids), file)
        return base64.b64encode(file.getvalue()).decode()
