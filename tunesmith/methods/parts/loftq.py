"""LoftQ: a LoRA over NF4 that begins with what rounding took away (Li et al. 2023, arXiv:2310.08659). `method.init=loftq`.

    y = nf4(W - s·B0·A0)·x + s·B·(A·x)       with A0 and B0 such that nf4(W - s·B0·A0) + s·B0·A0 is near W; A and B begin as they

           ┌────────── nf4(W - s·B0·A0) [out, in], frozen ─────┐
      x ───┤                                                   ├──(+)── y
           └── A [r, in] ────────► B [out, r] ────────── · s ──┘

The same module as PiSSA's over NF4, with other first values: those found by rounding and factoring in turn. Cost: that of LoRA of
rank r in time and trained parameters, with r·(in + out) fixed ones a layer, and the base's own codes aside in main memory.
"""

from typing import Any

import torch

from tunesmith.methods import lora, pissa
from tunesmith.methods.parts import decompose, extras
from tunesmith.methods.pissa import PiSSA
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import nf4
from tunesmith.models.draws import seed_of

NF4 = True
LEARNING_RATES = lora.LEARNING_RATES


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The modules, by path, without values. Raises LookupError where a target is not in the model, or smaller than the rank."""
    tuning = lora.assemble(model, settings, PiSSA, device)
    pissa.check_rank(settings.rank, tuning.adapter)
    tuning.notes += pissa.served_notes(settings.rank)
    tuning.fixed, tuning.layout = pissa.fixed(tuning.adapter), "pissa"
    tuning.about["pissa"] = {"begins_with": "rounding"}
    return tuning


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """What rounding took away where a layer is NF4; elsewhere nothing was taken, and A and B begin as LoRA's do."""
    lora.kaiming(tuning, start.seed)
    extras.begin(tuning, start.model)
    for path, module in pissa.updates(tuning.adapter).items():
        layer = start.model.get_submodule(path)
        b_OR, a_RI = module.B.detach(), module.A.detach()
        if nf4.is_nf4(layer):
            weight_OI, seed = start.dense(path).to(module.A.device), seed_of(start.seed, path)
            b_OR, a_RI = decompose.loftq(weight_OI, settings.rank, layer.rounded, settings.loftq_iterations, seed)
            b_OR, a_RI = b_OR / module.scale**0.5, a_RI / module.scale**0.5
        module.start_from(b_OR, a_RI)
