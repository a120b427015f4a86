"""Whether what another program computed is what the model said while it was ours."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.export import served
from tunesmith.export.difference import compare
from tunesmith.export.target import Source

# Of the largest logit: fp32 sums in another order differ by some units of 1e-6, one changed matrix by thousands of times that.
FP32 = 3e-5


def same_logits(truth: Sequence[Tensor], found: Sequence[Tensor], bound: float = FP32) -> tuple[dict[str, Any], list[str]]:
    """(figures, failures) of [T, V] logits for each prompt; `bound` is the share of the largest logit that they may differ by."""
    if wrong := [(a.shape, b.shape) for a, b in zip(truth, found, strict=True) if a.shape != b.shape]:
        return {}, [f"its logits have shape {tuple(wrong[0][1])}, and should have {tuple(wrong[0][0])}"]
    difference = compare(truth, found)
    scale = max(float(logits.abs().max()) for logits in truth)
    figures = dataclasses.asdict(difference) | {"allowed_logit_difference": bound * scale}
    if difference.largest_logit_difference <= bound * scale:  # NaN is no agreement
        return figures, []
    return figures, [
        f"its logits differ by up to {difference.largest_logit_difference:.2e} from the model's own, where {bound * scale:.1e} is rounding "
        f"(KL {difference.mean_kl:.2e} nats, top-1 agreement {difference.top1_agreement:.1%})"
    ]


def same_ids(trained: Sequence[Sequence[int]], found: Sequence[Sequence[int]], who: str) -> list[str]:
    """Failures where the prompts' token ids are others than in training."""
    failures = []
    for number, (ours, theirs) in enumerate(zip(trained, found, strict=True), 1):
        if list(ours) != list(theirs):
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
            failures.append(
                f"{who} feeds other tokens than training did: conversation {number} differs from token {at} on "
                f"({list(theirs[at : at + 5])} in place of {list(ours[at : at + 5])})"
            )
    return failures


def refuse(source: Source, server: str, target: str, *hows: served.How) -> None:
    """Raises UserError unless one of these is how the server takes the source; it says what can be done instead."""
    found = served.verdict(server, served.traits_of(source.tuning))
    if found.how in hows:
        return
    cure = {
        "fitted": f"`tunesmith export {source.given} --to {target} --as lora` fits a LoRA to it and reports the error; "
        "`tunesmith serve` serves it as it is",
        "merged": f"leave --keep-base and --adapter-only out: merged into its base {served.SERVERS[server].title} takes it",
        "not": "",
    }.get(found.how, "")
    raise UserError(*[f"{source.given}: {reason}" for reason in found.reasons], *([cure] if cure else []))
