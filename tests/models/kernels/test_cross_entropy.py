"""The loss of a chunk and the gradient in its place, against fp64 under autograd."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

from tunesmith.models.kernels.cross_entropy import cross_entropy_

# the interpreter's numpy says so where a sigmoid is zero, which is right
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(rows, vocabulary, dtype, device):
    torch.manual_seed(vocabulary)
    logits_RV = torch.randn(rows, vocabulary).mul(4).to(device, dtype)
    return logits_RV, torch.randint(vocabulary, (rows,)).to(device)


def expected(logits_RV, targets_R, logit_scale=1.0, softcap=None):
    """(loss, gradient for scaled logits) in fp64."""
    scaled = (logits_RV.double() * logit_scale).requires_grad_()
    z = scaled if softcap is None else torch.tanh(scaled / softcap) * softcap
    loss = F.cross_entropy(z, targets_R, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, scaled)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("logit_scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 5.0), (2.0, 30.0)])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (3, 100), (5, 8192), (2, 20011)])
def test_loss_and_gradient_are_those_of_the_formula(rows, vocabulary, dtype, logit_scale, softcap, device):
    logits_RV, targets_R = drawn(rows, vocabulary, dtype, device)
    loss, gradient_RV = expected(logits_RV, targets_R, logit_scale, softcap)
    before = logits_RV.clone()
    ours = cross_entropy_(logits_RV, targets_R, 1.0, logit_scale, softcap, gradient=False)
    assert torch.equal(logits_RV, before) and ours.dtype == torch.float32 and ours.shape == ()
    torch.testing.assert_close(ours.double(), loss, rtol=2e-6, atol=2e-6)
    assert torch.equal(cross_entropy_(logits_RV, targets_R, 0.5, logit_scale, softcap), ours)
    close = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(logits_RV.double(), 0.5 * gradient_RV, rtol=close, atol=1e-7)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_extreme_logits(softcap, device):
    vocabulary = 9000  # more than a block
    logits_RV = torch.zeros(4, vocabulary)
    logits_RV[0] = 3e4  # all alike, far from zero
    logits_RV[1, 0], logits_RV[1, -1] = 1e4, -1e4
    logits_RV[2, :8500] = float("-inf")  # whole lanes without anything: words that a mask rules out
    logits_RV = logits_RV.to(device)
    targets_R = torch.tensor([8999, 0, 8600, 1], device=device)
    if softcap:
        logits_RV = logits_RV[[0, 1, 3]].contiguous()
        targets_R = targets_R[[0, 1, 3]].contiguous()
    loss, gradient_RV = expected(logits_RV, targets_R, softcap=softcap)
    torch.testing.assert_close(cross_entropy_(logits_RV, targets_R, softcap=softcap).double(), loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits_RV.double(), gradient_RV, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("target", [-100, -1, 50, 10**9])
def test_a_target_outside_the_vocabulary_is_loud(target, device):
    logits_RV, targets_R = drawn(3, 50, torch.float32, device)
    targets_R[1] = target
    assert cross_entropy_(logits_RV, targets_R).isnan()


def test_nan_stays_nan_and_nothing_costs_nothing(device):
    logits_RV, targets_R = drawn(2, 300, torch.float32, device)
    logits_RV[0, 7] = float("nan")
    assert cross_entropy_(logits_RV, targets_R).isnan()
    assert cross_entropy_(logits_RV[:0], targets_R[:0]).item() == 0


def test_the_sum_is_the_same_on_every_run(device):
    logits_RV, targets_R = drawn(40, 500, torch.bfloat16, device)
    assert len({cross_entropy_(logits_RV.clone(), targets_R).item() for _ in range(3)}) == 1


def test_what_is_not_known_is_refused(device):
    logits_RV, targets_R = drawn(2, 8, torch.float32, device)
    with pytest.raises(ValueError, match="float64"):
        cross_entropy_(logits_RV.double(), targets_R)
    with pytest.raises(ValueError, match=r"targets in torch\.float32"):
        cross_entropy_(logits_RV, targets_R.float())
    with pytest.raises(ValueError, match="range of float16"):
        cross_entropy_(logits_RV.half(), targets_R, scale=1e-4)
    with pytest.raises(AssertionError):
        cross_entropy_(logits_RV.T.contiguous().T, targets_R)
    with pytest.raises(AssertionError):
        cross_entropy_(logits_RV, targets_R[:1])
