"""Evaluation and measuring passes leave each module in the mode it had."""

import torch
from torch import nn

from holdfast import Learner, Method
from holdfast.core.engine import Engine
from holdfast.operations._parts.fisher import fisher_diagonal
from holdfast.streams.data import TensorData


def test_a_frozen_part_in_eval_mode_stays_in_it_after_evaluation_and_a_fisher_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model[1].eval()
    learner = Learner(model)
    engine = Engine(Method(), learner, ())
    with engine.evaluating():
        assert not any(module.training for module in model.modules())
    fisher_diagonal(learner, TensorData(torch.randn(6, 4), torch.arange(6) % 2), "empirical")
    assert [module.training for module in model] == [True, False, True]
    assert model.training
