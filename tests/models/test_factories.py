"""Factories: shapes, sizes, seeds, names."""

import inspect
import json

import pytest
import torch
from torch import nn

import holdfast.models as models
from holdfast.core.errors import ConfigError, DataError
from holdfast.models import cnn, linear, mlp, parameter_bytes, parameter_count, resnet18, vit

OWN = [mlp, linear, cnn, resnet18, vit]
HEADS = {"fixed": 5, "growing": 0, "task": 0, "cosine": 0, "cosine_learnable": 0, "cosine_task": 0}


@pytest.mark.parametrize("name", models.FACTORIES)
def test_every_factory_takes_the_shape_the_classes_and_plain_values_by_keyword_only(name):
    signature = inspect.signature(getattr(models, name))
    parameters = signature.parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    headless = ("hypernetwork", "autoencoder", "conv_autoencoder", "cloud_vae", "invertible")
    needed = {"input_shape", "classes", "seed"} | (set() if name in headless else {"head"})
    assert needed <= parameters.keys()
    assert "name" not in parameters
    json.dumps([value.default for value in parameters.values() if value.default is not value.empty])
    documented = getattr(models, name).__doc__
    assert all(f"        {parameter}: " in documented for parameter in parameters)


def test_all_exports_exist_and_hold_every_factory():
    assert all(hasattr(models, name) for name in models.__all__)
    assert set(models.FACTORIES) <= set(models.__all__)


@pytest.mark.parametrize("factory", OWN)
@pytest.mark.parametrize("head", HEADS)
def test_every_model_takes_its_images_with_every_head(factory, head):
    model = factory(input_shape=[3, 16, 16], classes=5, head=head)
    assert model.head.width == HEADS[head]
    model.head.grow(5)
    if head in ("task", "cosine_task"):
        model.head.assign(0, [0, 1])
        model.head.task = 0
    images = torch.rand(2, 3, 16, 16)
    assert model(images).shape == (2, 5)
    assert model.features(images).shape == (2, model.head.features)


@pytest.mark.parametrize("factory", OWN)
@pytest.mark.parametrize("head", HEADS)
def test_equal_seeds_give_equal_weights_also_of_outputs_that_come_later(factory, head):
    first = factory(input_shape=(1, 8, 8), classes=5, head=head, seed=7)
    torch.rand(3)
    second = factory(input_shape=(1, 8, 8), classes=5, head=head, seed=7)
    first.head.grow(5)
    torch.rand(3)
    second.head.grow(5)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = factory(input_shape=(1, 8, 8), classes=5, head=head, seed=8)
    other.head.grow(5)
    assert any(not torch.equal(value, states[0][name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("factory", OWN)
def test_a_seeded_model_leaves_the_global_random_state(factory):
    before = torch.get_rng_state()
    factory(input_shape=(1, 8, 8), classes=5, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("factory", OWN)
def test_without_a_seed_weights_come_from_the_global_random_state(factory):
    state = torch.get_rng_state()
    first = factory(input_shape=(1, 8, 8), classes=5)
    second = factory(input_shape=(1, 8, 8), classes=5)
    torch.set_rng_state(state)
    again = factory(input_shape=(1, 8, 8), classes=5)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize("factory", OWN)
def test_an_unknown_head_is_an_error_with_the_nearest_name(factory):
    with pytest.raises(ConfigError, match="head='growin'; did you mean 'growing'"):
        factory(input_shape=(1, 8, 8), classes=5, head="growin")


@pytest.mark.parametrize("factory", OWN)
def test_a_stream_without_classes_is_refused_by_a_fixed_head(factory):
    with pytest.raises(ConfigError, match="0 classes"):
        factory(input_shape=(1, 8, 8), classes=0)


def test_a_grown_model_loads_into_a_fresh_one_of_the_same_configuration():
    model = mlp(input_shape=(4,), classes=6, head="growing", seed=0)
    model.head.grow(2)
    model.head.grow(6)
    fresh = mlp(input_shape=(4,), classes=6, head="growing", seed=1)
    fresh.load_state_dict(model.state_dict())
    inputs = torch.rand(3, 4)
    assert torch.equal(fresh(inputs), model(inputs))


# mlp ----------------------------------------------------------------------------------------------------


def test_vectors_are_not_flattened_and_images_are():
    kinds = [type(layer) for layer in mlp(input_shape=(4,), classes=2).backbone]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert type(mlp(input_shape=(1, 2, 2), classes=2).backbone[0]) is nn.Flatten


def test_mlp_has_the_parameters_of_the_mnist_network():
    assert parameter_count(mlp(input_shape=(1, 28, 28), classes=10)) == 784 * 100 + 100 + 100 * 100 + 100 + 1000 + 10
    assert parameter_bytes(mlp(input_shape=(4,), classes=3, hidden=[]).half()) == 2 * 15


def test_batch_norm_activation_and_dropout_come_in_this_order():
    model = mlp(input_shape=(4,), classes=2, hidden=[3], activation="leaky_relu", dropout=0.1, batch_norm=True)
    assert [type(layer) for layer in model.backbone] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Dropout]
    assert model.backbone[3].p == 0.1


def test_xavier_weights_are_within_their_bound_and_biases_are_zero():
    model = mlp(input_shape=(50,), classes=10, hidden=[200], init="xavier", seed=0)
    for layer in (model.backbone[0], model.head):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "rele"}, "activation='rele'; did you mean 'relu'"),
        ({"init": "xavie"}, "init='xavie'; did you mean 'xavier'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"hidden": [10, 0]}, r"hidden=\[10, 0\]"),
        ({"input_shape": (0,)}, r"input_shape \[0\]"),
    ],
)
def test_wrong_values_of_the_mlp_are_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        mlp(**({"input_shape": (4,), "classes": 2} | arguments))


# Images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [cnn, resnet18])
def test_image_models_refuse_what_is_no_image(factory):
    with pytest.raises(ConfigError, match=r"\(64,\).*mlp"):
        factory(input_shape=(64,), classes=2)


def test_images_too_small_for_the_convolutions_are_refused():
    with pytest.raises(ConfigError, match="at most 2 entries"):
        cnn(input_shape=(1, 7, 5), classes=2, channels=[4, 4, 4])
    assert cnn(input_shape=(1, 13, 8), classes=2, channels=[4, 4])(torch.rand(3, 1, 13, 8)).shape == (3, 2)


@pytest.mark.parametrize("classes", [5, 10, 100])
def test_the_reduced_resnet_has_the_published_number_of_parameters(classes):
    model = resnet18(input_shape=(3, 32, 32), classes=classes)
    counts = {name: parameter_count(stage) for name, stage in model.backbone.named_children()}
    assert counts == {
        "stem": 580,
        "layer1": 14_560,
        "layer2": 51_600,
        "layer3": 205_600,
        "layer4": 820_800,
        "pool": 0,
        "flatten": 0,
    }
    assert parameter_count(model.head) == 160 * classes + classes
    assert parameter_count(model) == 1_093_140 + 160 * classes + classes


def test_the_stages_of_the_reduced_resnet_have_the_published_shapes():
    maps = torch.rand(2, 3, 32, 32)
    shapes = []
    for stage in resnet18(input_shape=(3, 32, 32), classes=10).backbone:
        maps = stage(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(20, 32, 32), (20, 32, 32), (40, 16, 16), (80, 8, 8), (160, 4, 4), (160, 1, 1), (160,)]


def test_only_the_head_of_the_reduced_resnet_and_its_norms_have_biases():
    model = resnet18(input_shape=(1, 28, 28), classes=10)
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))


# Libraries ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[("torchvision", "resnet18", "resnte18"), ("timm", "resnet18", "resnte18")], ids=lambda p: p[0])
def library(request):
    name, right, wrong = request.param
    pytest.importorskip(name, reason=f"the extra `vision` ({name}) is not installed")
    return getattr(models, name), right, wrong


def test_a_library_model_gets_our_head(library):
    factory, name, _ = library
    model = factory(input_shape=(3, 32, 32), classes=7, architecture=name, head="growing", seed=0)
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.head.width == 0
    model.head.grow(7)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert parameter_count(model) == 11_176_512 + 7 * 512 + 7


def test_a_wrong_architecture_is_an_error_with_the_nearest_name(library):
    factory, _, wrong = library
    with pytest.raises(ConfigError, match=f"architecture '{wrong}'; did you mean 'resnet18'"):
        factory(input_shape=(3, 32, 32), classes=7, architecture=wrong)


def test_library_models_with_equal_seeds_are_equal_and_leave_the_global_state(library):
    factory, name, _ = library
    before = torch.get_rng_state()
    first = factory(input_shape=(3, 32, 32), classes=3, architecture=name, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    second = factory(input_shape=(3, 32, 32), classes=3, architecture=name, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batch_norm_of_a_library_model_has_seen_nothing(library):
    factory, name, _ = library
    state = factory(input_shape=(3, 32, 32), classes=3, architecture=name).state_dict()
    assert all(value == 0 for key, value in state.items() if key.endswith("num_batches_tracked"))
    assert all((value == 0).all() for key, value in state.items() if key.endswith("running_mean"))


def test_weights_come_from_a_file_with_another_number_of_classes_and_grey_images_see_their_mean(library, tmp_path):
    factory, name, _ = library
    saved = __import__(factory.__name__)
    source = saved.models.resnet18(num_classes=4)
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": source.state_dict()}, path)
    model = factory(input_shape=(3, 32, 32), classes=7, architecture=name, weights=str(path))
    assert torch.equal(model.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    grey = factory(input_shape=(1, 32, 32), classes=7, architecture=name, weights=str(path))
    image = torch.rand(2, 1, 32, 32)
    colour = image.expand(2, 3, 32, 32)
    torch.testing.assert_close(grey.eval().features(image), model.eval().features(colour), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("content", ["absent", "text", "object", "other", "list"])
def test_files_that_are_no_fitting_weights_are_errors(library, tmp_path, content):
    factory, name, _ = library
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("no weights")
    elif content == "object":
        torch.save(nn.Linear(2, 2), path)
    elif content == "other":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif content == "list":
        torch.save([torch.zeros(2)], path)
    with pytest.raises(DataError, match=r"weights\.pt"):
        factory(input_shape=(3, 32, 32), classes=7, architecture=name, weights=str(path))


def test_images_of_a_size_the_architecture_cannot_take_are_refused_at_once():
    pytest.importorskip("torchvision", reason="the extra `vision` (torchvision) is not installed")
    with pytest.raises(ConfigError, match=r"alexnet.*\(3, 16, 16\)"):
        models.torchvision(input_shape=(3, 16, 16), classes=7, architecture="alexnet")


def test_vision_transformers_take_images_of_other_sizes_than_they_were_made_for():
    pytest.importorskip("timm", reason="the extra `vision` (timm) is not installed")
    model = models.timm(input_shape=(3, 40, 40), classes=7, architecture="vit_tiny_patch16_224", seed=0)
    assert model(torch.zeros(2, 3, 40, 40)).shape == (2, 7)


def test_an_architecture_that_ends_in_a_convolution_gets_a_head_for_its_classes():
    pytest.importorskip("torchvision", reason="the extra `vision` (torchvision) is not installed")
    net = models.torchvision(input_shape=(3, 64, 64), classes=7, architecture="squeezenet1_1").eval()
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_missing_library_is_an_error_that_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ImportError, match=r"holdfast\[vision\]"):
        getattr(models, name)(input_shape=(3, 32, 32), classes=7, architecture="resnet18")
