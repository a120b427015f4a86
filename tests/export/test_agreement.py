import math

import torch

from tunesmith.export.agreement import FP32, same_ids, same_logits

LOGITS = [torch.randn(5, 11, generator=torch.Generator().manual_seed(0)) * 10, torch.randn(3, 11)]


def test_rounding_is_no_difference() -> None:
    off = [each * (1 + 1e-6) for each in LOGITS]
    figures, failures = same_logits(LOGITS, off)
    assert failures == [] and 0 < figures["largest_logit_difference"] < figures["allowed_logit_difference"]
    assert math.isclose(figures["allowed_logit_difference"], FP32 * max(float(each.abs().max()) for each in LOGITS), rel_tol=1e-6)
    assert figures["positions"] == 8 and figures["top1_agreement"] == 1.0


def test_more_than_rounding_is_said_with_figures() -> None:
    off = [LOGITS[0], LOGITS[1] + torch.eye(11)[0] * 0.01]
    figures, [failure] = same_logits(LOGITS, off)
    assert f"{figures['largest_logit_difference']:.2e}" in failure and figures["largest_logit_difference"] > 0.009


def test_what_is_not_a_number_never_agrees() -> None:
    broken = [LOGITS[0].clone(), LOGITS[1]]
    broken[0][2, 3] = math.nan
    assert same_logits(LOGITS, broken)[1]


def test_other_shapes_never_agree() -> None:
    [failure] = same_logits(LOGITS, [LOGITS[0][:, :-1], LOGITS[1]])[1]
    assert "(5, 10)" in failure and "(5, 11)" in failure


def test_other_tokens_are_named_with_their_place() -> None:
    assert same_ids([[1, 2, 3]], [[1, 2, 3]], "it") == []
    [failure] = same_ids([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 9]], "the server")
    assert (
        failure.startswith("the server feeds other tokens")
        and "conversation 2 differs from token 1" in failure
        and "[9] in place of [5, 6]" in failure
    )
    assert same_ids([[1, 2]], [[1, 2, 3]], "it"), "a longer one differs too"
