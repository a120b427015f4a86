"""A prompt as vectors: virtual tokens, then the rows of its tokens."""

import base64
import io
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunesmith.serve.external.embeds import Embeds


def test_virtual_tokens_stand_in_front_and_rows_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    embedding_VC, table_PC = torch.randn(7, 4, dtype=torch.bfloat16), torch.randn(2, 4)
    save_file({"embed": embedding_VC}, tmp_path / "model/m.safetensors")
    save_file({"virtual_tokens": table_PC}, tmp_path / "p.safetensors")
    (tmp_path / "embedding.json").write_text(json.dumps({"file": "m.safetensors", "tensor": "embed", "scale": 2.0}), encoding="utf-8")
    embeds = Embeds(tmp_path, tmp_path / "p.safetensors")
    found = embeds.vectors([3, 0, 3])
    assert len(embeds) == 2 and torch.equal(found, torch.cat([table_PC, embedding_VC[[3, 0, 3]].float() * 2]))
    sent = torch.load(io.BytesIO(base64.b64decode(embeds.text([3, 0, 3]))), weights_only=True)
    assert torch.equal(sent, found)
