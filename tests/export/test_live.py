import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests import runs
from tunesmith.data.rendering.render import Renderer
from tunesmith.export.difference import Asked, Difference
from tunesmith.export.live import Apart, Live, listen
from tunesmith.models import load as loading


def some(kl: float) -> Difference:
    return Difference(3, 0.5, kl, 1.0)


def test_the_run_s_own_data_decides_and_the_worse_is_gated() -> None:
    assert Apart(some(0.1), None).decides == some(0.1) and Apart(some(0.1), some(0.3)).decides == some(0.3)
    assert Apart(some(0.1), None).worst_kl == 0.1 and Apart(some(0.4), some(0.3)).worst_kl == 0.4
    assert math.isnan(Apart(some(0.1), some(math.nan)).worst_kl) and math.isnan(Apart(some(math.nan), some(0.1)).worst_kl)
    assert Apart(some(0.1), None).facts().keys() == {"prompts"} and Apart(some(0.1), some(0.2)).facts()["rows"]["mean_kl"] == 0.2


def test_prompts_and_rows_are_apart() -> None:
    logits = [torch.zeros(2, 4), torch.zeros(3, 4)]
    live = Live([Asked([1, 2])], [Asked([1, 2, 3])], None, logits)
    found = live.apart([logits[0], logits[1] + torch.tensor([1.0, 0, 0, 0])])
    assert (found.prompts.positions, found.prompts.mean_kl) == (2, 0.0)
    assert found.rows is not None and found.rows.positions == 3 and found.rows.mean_kl > 0.05
    assert Live([Asked([1, 2])], [], None, logits[:1]).apart(logits[:1]).rows is None


def test_another_model_is_asked_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    base = loading.load(tiny_llama, dtype=torch.float32)
    run = runs.settings(tiny_llama, runs.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run")
    renderer = Renderer(base.tokenizer, stop_ids=[257])
    tuned: Any = SimpleNamespace(model=base.model, tokenizer=base.tokenizer, renderer=renderer, head=None, run=run)
    live = listen(tuned)
    assert len(live.prompts) == 4 and len(live.rows) == 16 and len(live.logits) == 20
    assert live.apart(live.ask(base.model)).worst_kl == 0.0
    with torch.no_grad():
        base.model.lm_head.weight[65] += 1.0
    assert live.apart(live.ask(base.model)).worst_kl > 1e-4
