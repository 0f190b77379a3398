"""Heads and features in models of any kind."""

import pytest
import torch
from torch import nn

from holdfast.core.errors import ConfigError, UsageError
from holdfast.models import Classifier, GrowingHead, features_of, find_head, mlp, parameter_bytes, parameter_count


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, left, right):
        return self.out(left + right)


def test_the_head_attribute_is_the_head():
    model = mlp(input_shape=(4,), classes=3, head="cosine")
    assert find_head(model) == ("head", model.head)


def test_the_last_linear_layer_is_the_head_of_a_model_without_that_attribute():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 2), nn.Softplus()))
    assert find_head(model) == ("2.0", model[2][0])


def test_a_composite_head_attribute_means_its_last_linear_layer():
    model = Classifier(nn.Identity(), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    assert find_head(model) == ("head.2", model.head[2])
    model = Classifier(nn.Linear(4, 5), nn.Bilinear(5, 5, 2))
    assert find_head(model) == ("head", model.head)


def test_a_head_of_ours_counts_as_a_linear_layer_wherever_it_is():
    model = nn.Sequential(nn.Linear(4, 5), GrowingHead(5))
    assert find_head(model) == ("1", model[1])


def test_a_path_goes_before_every_rule_and_a_wrong_one_is_an_error_with_the_nearest_name():
    model = mlp(input_shape=(4,), classes=3)
    assert find_head(model, "backbone.2") == ("backbone.2", model.backbone[2])
    with pytest.raises(ConfigError, match=r"'backbone\.22'; did you mean 'backbone\.2'"):
        find_head(model, "backbone.22")


def test_a_model_without_a_linear_layer_is_an_error():
    with pytest.raises(ConfigError, match="Sequential has no attribute `head` and no linear layer"):
        find_head(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_features_are_what_the_head_sees_with_their_graph_and_the_hook_is_gone():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    inputs = torch.rand(3, 4)
    features = features_of(model, model[2], inputs)
    assert torch.equal(features, torch.tanh(model[0](inputs)))
    assert features.requires_grad
    assert not model[2]._forward_pre_hooks


def test_features_of_inputs_that_are_tuples_or_mappings():
    model = TwoInputs()
    left, right = torch.rand(3, 4), torch.rand(3, 4)
    assert torch.equal(features_of(model, model.out, (left, right)), left + right)
    assert torch.equal(features_of(model, model.out, {"right": right, "left": left}), left + right)


def test_the_hook_is_gone_after_a_forward_that_failed():
    model = TwoInputs()
    with pytest.raises(RuntimeError):
        features_of(model, model.out, (torch.rand(3, 4), torch.rand(3, 5)))
    assert not model.out._forward_pre_hooks


def test_a_head_that_is_never_called_is_an_error():
    with pytest.raises(UsageError, match="never called its head"):
        features_of(TwoInputs(), nn.Linear(4, 2), (torch.rand(3, 4), torch.rand(3, 4)))


def test_shared_parameters_are_counted_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.BatchNorm1d(4), layer)
    assert parameter_count(model) == 16 + 4 + 8
    assert parameter_bytes(model) == 4 * 28
    assert parameter_bytes(model.double()) == 8 * 28


def test_a_classifier_passes_several_inputs_to_its_backbone():
    model = Classifier(TwoInputs(), nn.Linear(2, 3))
    left, right = torch.rand(3, 4), torch.rand(3, 4)
    assert torch.equal(model(left, right=right), model.head(model.features(left, right)))
