import torch
from torch import nn

from tunesmith.methods.tuning import Tuning


def test_count_and_modes():
    module = nn.Dropout(0.5)
    tuning = Tuning({"a": module}, {"a.x": nn.Parameter(torch.zeros(2, 3)), "a.y": nn.Parameter(torch.zeros(4))})
    assert tuning.count == 10 and tuning.learning_rate_ratios == {} and tuning.notes == []
    tuning.train(False)
    assert not module.training
    tuning.train()
    assert module.training
