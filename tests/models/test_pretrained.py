"""Pretrained backbones from files on this machine: what they want of images, and features from inside."""

import json

import pytest
import torch
from torch import nn

from holdfast.config import build
from holdfast.core.errors import ConfigError, DataError
from holdfast.models import frozen, timm, torchvision, transformers
from holdfast.models.pretrained import Cut, Preprocess
from holdfast.streams import split
from holdfast.streams.datasets import arrays

SAID = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.5], "do_center_crop": True, "resample": 3}


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("transformers", reason="the extra `backbones` (transformers) is not installed")


@pytest.fixture(scope="module")
def dinov2(library, tmp_path_factory):
    """A folder as a hub has it: a tiny DINOv2 of random weights, with what it wants of images."""
    folder = tmp_path_factory.mktemp("dinov2")
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        library.Dinov2Model(library.Dinov2Config(**sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**SAID, "crop_size": {"height": 28, "width": 28}}))
    return folder


@pytest.fixture(scope="module")
def vit(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = library.ViTConfig(**sizes, image_size=32, patch_size=16)
        library.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


IMAGES = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def by_hand(library, folder, images):
    mean, std = (torch.tensor(SAID[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    network = library.Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        return network((images - mean) / std, output_hidden_states=True)


# transformers ---------------------------------------------------------------------------------------------


def test_dinov2_from_a_folder_gives_its_normalised_class_token(library, dinov2):
    model = transformers(input_shape=(3, 28, 28), classes=5, weights=str(dinov2)).eval()
    expected = by_hand(library, dinov2, IMAGES).last_hidden_state[:, 0]
    torch.testing.assert_close(model.features(IMAGES), expected)
    assert model(IMAGES).shape == (2, 5)


@pytest.mark.parametrize("pool", ["mean", "cls_mean"])
def test_the_other_ways_to_pool_tokens(library, dinov2, pool):
    model = transformers(input_shape=(3, 28, 28), classes=5, weights=str(dinov2), pool=pool).eval()
    tokens = by_hand(library, dinov2, IMAGES).last_hidden_state
    image = torch.stack([tokens[:, place] for place in range(1, 5)]).mean(0)
    expected = image if pool == "mean" else torch.cat((tokens[:, 0], image), dim=1)
    torch.testing.assert_close(model.features(IMAGES), expected)


def test_features_of_an_inner_layer_are_those_of_that_layer(library, dinov2):
    model = transformers(input_shape=(3, 28, 28), classes=5, weights=str(dinov2), cut="encoder.layer.1").eval()
    hidden = by_hand(library, dinov2, IMAGES).hidden_states
    torch.testing.assert_close(model.features(IMAGES), hidden[2][:, 0])  # 0 is the embedding


def test_small_images_are_resized_to_what_the_model_was_made_for(library, dinov2):
    model = transformers(input_shape=(3, 20, 20), classes=5, weights=str(dinov2)).eval()
    small = IMAGES[:, :, :20, :20]
    large = nn.functional.interpolate(small, (28, 28), mode="bicubic", align_corners=False, antialias=True)
    expected = by_hand(library, dinov2, large).last_hidden_state[:, 0]
    torch.testing.assert_close(model.features(small), expected)


def test_grey_images_are_shown_in_all_colours(library, dinov2):
    model = transformers(input_shape=(1, 28, 28), classes=5, weights=str(dinov2)).eval()
    expected = by_hand(library, dinov2, IMAGES[:, :1].expand(-1, 3, -1, -1)).last_hidden_state[:, 0]
    torch.testing.assert_close(model.features(IMAGES[:, :1]), expected)


def test_a_vit_without_a_file_of_its_preprocessing_asks_for_one(vit):
    with pytest.raises(DataError, match=r"preprocessor_config\.json.*preprocess=false"):
        transformers(input_shape=(3, 32, 32), classes=5, weights=str(vit))
    model = transformers(input_shape=(3, 32, 32), classes=5, weights=str(vit), preprocess=False)
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, 16)


def test_a_transformer_can_be_trained_as_a_whole(vit):
    model = transformers(input_shape=(3, 32, 32), classes=5, weights=str(vit), preprocess=False, head="growing")
    model.head.grow(3)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


@pytest.mark.parametrize("content", ["absent", "empty", "no weights"])
def test_a_folder_without_a_model_is_an_error_that_says_so_at_once(library, tmp_path, dinov2, content):
    folder = tmp_path / "model"
    if content != "absent":
        folder.mkdir()
    if content == "no weights":
        (folder / "config.json").write_text((dinov2 / "config.json").read_text())
    with pytest.raises(DataError, match="model"):
        transformers(input_shape=(3, 28, 28), classes=5, weights=str(folder))


def test_a_pickle_in_the_folder_is_never_run(library, tmp_path, dinov2):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((dinov2 / "config.json").read_text())
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError):
        transformers(input_shape=(3, 28, 28), classes=5, weights=str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_unknown_layer_is_an_error_with_the_nearest_name(dinov2):
    with pytest.raises(ConfigError, match=r"unknown layer 'encoder.layer.11'; did you mean 'encoder.layer.1'"):
        transformers(input_shape=(3, 28, 28), classes=5, weights=str(dinov2), cut="encoder.layer.11")


@pytest.mark.parametrize("library", ["transformers"])
def test_without_the_library_the_error_names_the_extra(library, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(ImportError, match=r"holdfast\[backbones\]"):
        transformers(input_shape=(3, 28, 28), classes=5, weights=str(tmp_path))


def test_a_frozen_transformer_from_json_with_a_cache(library, dinov2, tmp_path):
    pixels = torch.randint(256, (12, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    stream = split(arrays(pixels, torch.arange(12) % 4, pixels, torch.arange(12) % 4), experiences=2)
    spec = {"name": "frozen", "library": "transformers", "weights": str(dinov2), "preprocess": True, "pool": "cls_mean"}
    model = build.build_model({**spec, "cache": True, "cache_folder": str(tmp_path)}, stream).eval()
    cached = build.with_features(stream, model)
    whole = build.build_model(spec, stream).eval()
    raw = stream[0].test.gather(torch.arange(6)).inputs
    found = cached[0].test.gather(torch.arange(6)).inputs
    assert found.shape == (6, 48)
    torch.testing.assert_close(found, whole.features(stream.prepare(raw)), rtol=1e-5, atol=1e-5)


def test_frozen_asks_for_a_folder_of_transformers_and_for_a_name_of_the_others():
    with pytest.raises(ConfigError, match="Give weights=<folder>"):
        frozen(input_shape=(3, 28, 28), classes=5, library="transformers", architecture="dinov2")
    with pytest.raises(ConfigError, match="architecture='resnet18'"):
        frozen(input_shape=(3, 28, 28), classes=5, library="timm")
    with pytest.raises(ConfigError, match="pool='mean'"):
        frozen(input_shape=(3, 28, 28), classes=5, library="torchvision", architecture="resnet18", pool="mean")


# timm and torchvision -------------------------------------------------------------------------------------


@pytest.fixture
def safetensors():
    return pytest.importorskip("safetensors.torch", reason="the extra `backbones` (safetensors) is not installed")


def test_weights_in_safetensors_are_read_like_others(tmp_path, safetensors):
    zoo = pytest.importorskip("timm", reason="the extra `vision` (timm) is not installed")
    source = zoo.create_model("resnet10t")
    safetensors.save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = timm(
        input_shape=(3, 32, 32), classes=7, architecture="resnet10t", weights=str(tmp_path / "weights.safetensors")
    )
    assert torch.equal(model.backbone.layer4[0].conv2.weight, source.layer4[0].conv2.weight)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.safetensors"):
        timm(input_shape=(3, 32, 32), classes=7, architecture="resnet10t", weights=str(tmp_path / "broken.safetensors"))


def test_timm_says_itself_what_its_models_want_of_images():
    pytest.importorskip("timm", reason="the extra `vision` (timm) is not installed")
    model = timm(input_shape=(3, 20, 20), classes=7, architecture="vit_tiny_patch16_224", preprocess=True, seed=0)
    own = model.backbone[0]
    assert (own.size, own.mean.flatten().tolist(), own.interpolation) == (224, [0.5] * 3, "bicubic")
    smaller = timm(
        input_shape=(3, 20, 20), classes=7, architecture="vit_tiny_patch16_224", preprocess=True, size=32, seed=0
    )
    assert smaller.eval().features(torch.rand(2, 3, 20, 20)).shape == (2, 192)


@pytest.mark.parametrize("pool", ["cls", "mean", "cls_mean"])
def test_tokens_of_timm_are_pooled_as_asked(pool):
    pytest.importorskip("timm", reason="the extra `vision` (timm) is not installed")
    arguments = {"input_shape": (3, 32, 32), "classes": 7, "architecture": "vit_tiny_patch16_224", "seed": 0}
    plain = timm(**arguments).eval()
    found = timm(**arguments, pool=pool).eval().features(IMAGES_32)
    with torch.no_grad():
        tokens = plain.backbone.forward_features(IMAGES_32)
    image = torch.stack([tokens[:, place] for place in range(1, 5)]).mean(0)
    expected = {"cls": tokens[:, 0], "mean": image, "cls_mean": torch.cat((tokens[:, 0], image), 1)}[pool]
    torch.testing.assert_close(found, expected)


IMAGES_32 = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_weights_in_the_names_of_their_first_publication_are_read_by_timms_own_rules(tmp_path):
    zoo = pytest.importorskip("timm", reason="the extra `vision` (timm) is not installed")
    source = zoo.create_model("vit_small_patch14_dinov2", num_classes=0)
    state = {**source.state_dict(), "mask_token": torch.zeros(1, 384)}  # DINOv2's own files have one
    torch.save(state, tmp_path / "dinov2.pth")
    model = timm(
        input_shape=(3, 28, 28),
        classes=2,
        architecture="vit_small_patch14_dinov2",
        weights=str(tmp_path / "dinov2.pth"),
    )
    assert torch.equal(model.backbone.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)


def test_torchvisions_images_are_resized_and_normalised_as_its_weights_were_trained():
    zoo = pytest.importorskip("torchvision", reason="the extra `vision` (torchvision) is not installed")
    model = torchvision(input_shape=(3, 20, 20), classes=7, architecture="resnet18", preprocess=True, size=40, seed=0)
    own = zoo.models.ResNet18_Weights.DEFAULT.transforms()
    assert (model.backbone[0].mean.flatten() - torch.tensor(own.mean)).abs().max() < 1e-7
    assert (model.backbone[0].std.flatten() - torch.tensor(own.std)).abs().max() < 1e-7
    assert model.backbone[0].size == 40


def test_a_cut_through_a_convolutional_network_averages_its_maps():
    pytest.importorskip("torchvision", reason="the extra `vision` (torchvision) is not installed")
    model = torchvision(input_shape=(3, 32, 32), classes=7, architecture="resnet18", cut="layer2", seed=0).eval()
    network = model.backbone.network
    with torch.no_grad():
        maps = network.maxpool(network.relu(network.bn1(network.conv1(IMAGES_32))))
        maps = network.layer1(maps)
        for block in network.layer2:
            maps = block(maps)
    torch.testing.assert_close(model.features(IMAGES_32), maps.mean((2, 3)))


# The parts ------------------------------------------------------------------------------------------------


def test_preprocess_does_to_each_pixel_what_it_says():
    images = torch.rand(2, 3, 4, 4)
    found = Preprocess([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])(images)
    for row in range(2):
        for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
            torch.testing.assert_close(found[row, channel], (images[row, channel] - mean) / std)


def test_a_cut_stops_the_forward_at_its_layer():
    class Last(nn.Module):
        def forward(self, inputs):
            raise AssertionError("reached")

    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Last())
    assert Cut(network, cut="1")(torch.zeros(2, 4)).shape == (2, 3)
