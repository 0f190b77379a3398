"""Autoencoders, clouds and the invertible network: what they compute, and which methods learn with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.config import kinds
from holdfast.config.build import resolve
from holdfast.config.compose import compose
from holdfast.core.errors import ConfigError, HoldfastError, UsageError
from holdfast.core.experience import Experience, Stream
from holdfast.models import autoencoder, cloud_vae, conv_autoencoder, invertible
from holdfast.models.autoencoders import unpooled
from holdfast.models.invertible import Coupling
from holdfast.models.losses import Chamfer, Sinkhorn, chamfer, flow, sinkhorn
from holdfast.runs.assemble import restore
from holdfast.runs.export import export
from holdfast.runs.run import run
from holdfast.streams import inversion, reconstruction
from holdfast.streams.data import TensorData
from holdfast.streams.datasets import polynomial, synthetic
from holdfast.testing import toys
from holdfast.testing.checking import arguments_of
from holdfast.testing.training import refused
from holdfast.training import Trainer

METHODS = kinds.names("methods")
"""Name -> what makes the method."""
SHAPES: dict[str, tuple[int, ...]] = {
    "dense": (5,),
    "images": (1, 8, 6),
    "volumes": (1, 4, 6, 4),
    "cloud": (12, 3),
    "flow": (5,),
}
LOSSES = {"cloud": chamfer, "flow": flow}


def stream(kind: str, task: bool = False) -> Stream:
    """Two experiences of samples that are learnt by giving them back; of `flow`, two numbers that three others tell."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(2):
        parts = []
        for rows in (24, 8):
            x = torch.randn(rows, *SHAPES[kind], generator=generator) * (0.3, 1.0)[index] + index
            if kind == "flow":
                x[:, :2] = x[:, 2:4] * 2 + 0.1 * x[:, :2]
            targets = x[:, :2] if kind == "flow" else x
            parts.append(TensorData(x, targets, task=index if task else None))
        made.append(Experience(index, *parts, task=index if task else None))
    return Stream(made, SHAPES[kind], 0, "task" if task else "domain")


def model(kind: str, of: Stream) -> nn.Module:
    sizes: dict[str, Any] = {"input_shape": of.input_shape, "classes": of.outputs, "seed": 0}
    if kind == "dense":
        return autoencoder(hidden=[8], latent=3, **sizes)
    if kind == "cloud":
        return cloud_vae(channels=[8, 16], latent=4, base=[2], **sizes)
    if kind == "flow":
        return invertible(blocks=2, hidden=8, **sizes)
    return conv_autoencoder(channels=[3, 4], latent=4, **sizes)


def made(name: str, kind: str) -> Any:
    """A method; EWC's Fisher diagonal is of the data's own targets where the loss says no distribution of them."""
    arguments = arguments_of(METHODS[name], {})
    return METHODS[name](**arguments, **({"fisher": "empirical"} if name == "ewc" and kind in LOSSES else {}))


def trained(name: str, kind: str) -> Trainer | HoldfastError:
    """A trainer that has learnt two experiences with a method, or its refusal."""
    method = made(name, kind)
    of = stream(kind, "task" in method.needs)
    net = model(kind, of)
    criterion = LOSSES.get(kind, nn.functional.mse_loss)
    try:
        return toys.train(
            method, net, of, criterion=criterion, batch_size=8, epochs=3, evaluate="test",
            optimizer={"name": "Adam", "lr": 0.01},
        )  # fmt: skip
    except HoldfastError as error:
        return error


def check(name: str, kind: str) -> bool:
    """Whether a method learns with a model; where it does not, it says so in a sentence of ours."""
    result = trained(name, kind)
    if isinstance(result, HoldfastError):
        assert refused(result), f"{name} is refused with {kind}, but in no sentence: {result}"
        return False
    losses = {(e["after"], e["experience"]): e["loss"] for e in result.events if e["event"] == "evaluate"}
    assert all(value.isfinite().all() for value in result.model.state_dict().values())
    if result.engine.index:  # `random` never trains
        assert min(losses[index, index] / losses[-1, index] for index in range(2)) < 0.98, (name, kind, losses)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_reconstruction_and_inversion_or_refuses_in_a_sentence(name: str, kind: str) -> None:
    learnt = check(name, kind)
    assert not (learnt and "classes" in made(name, kind).needs)


@pytest.mark.parametrize("name", ["er", "agem", "ewc", "der"])
@pytest.mark.parametrize("kind", SHAPES)
def test_replay_projection_and_penalty_learn_with_every_model(name: str, kind: str) -> None:
    assert check(name, kind)


# What they compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_maxima_go_back_to_where_they_were_and_a_code_alone_is_enlarged_by_interpolation(kind: str) -> None:
    net = model(kind, stream(kind))
    x = torch.randn(3, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
    assert net(x).shape == x.shape
    codes = net.encode(x)
    assert not torch.equal(net.decode(codes), net(x))
    assert torch.equal(net.inverse(codes), net.encode(net.decode(codes)))
    pool = nn.functional.max_pool2d if kind == "images" else nn.functional.max_pool3d
    back = nn.functional.max_unpool2d if kind == "images" else nn.functional.max_unpool3d
    values, places = pool(x, 2, return_indices=True)
    assert torch.equal(unpooled(values, places, x.shape[2:]), back(values, places, 2, output_size=x.shape[2:]))
    plain = conv_autoencoder(input_shape=SHAPES[kind], classes=x[0].numel(), channels=[3], unpool=False, seed=0)
    assert torch.equal(plain.decode(plain.encode(x)), plain(x))


@pytest.mark.parametrize("kind", ["dense", "images", "volumes", "cloud"])
def test_halves_live_on_devices_of_their_own_and_stay_there(kind: str) -> None:
    shape = SHAPES[kind]
    make = {"dense": autoencoder, "cloud": cloud_vae}.get(kind, conv_autoencoder)
    sizes: dict[str, Any] = {"input_shape": shape, "classes": torch.Size(shape).numel(), "seed": 0}
    net = make(**sizes, devices=["cpu", "meta"])
    net.to("cpu").to(torch.float64).to(torch.float32)
    assert {p.device.type for p in net.encoder.parameters()} == {"cpu"}
    assert {p.device.type for part in (net.decoder, net.head) for p in part.parameters()} == {"meta"}
    outputs = net(torch.zeros(2, *shape))
    assert outputs.device.type == "meta"
    split, whole = make(**sizes, devices=["cpu", "cpu"]).eval(), make(**sizes).eval()
    assert torch.equal(split(torch.ones(2, *shape)), whole(torch.ones(2, *shape)))
    with pytest.raises(ConfigError, match="Give two"):
        make(**sizes, devices=["cpu"])
    with pytest.raises(ConfigError, match="Write 'cpu' or"):
        make(**sizes, devices=["cpu", "gqu"])


def test_chamfer_is_the_mean_squared_distance_to_the_nearest_point_both_ways() -> None:
    one, other = (torch.randn(2, n, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 7))
    rows = []
    for a, b in zip(one, other):
        there = sum(min(float((p - q).square().sum()) for q in b) for p in a) / len(a)
        rows.append(there + sum(min(float((p - q).square().sum()) for p in a) for q in b) / len(b))
    assert torch.allclose(Chamfer().of_answers(one, other), torch.tensor(rows), atol=1e-5)


def test_sinkhorn_of_far_clouds_is_their_distance_and_falls_to_zero_as_they_meet() -> None:
    cloud = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    moved = cloud + torch.tensor([3.0, 4.0, 0.0])
    assert torch.allclose(sinkhorn.by_row(moved, cloud), torch.full((2,), 5.0), rtol=0.01)
    assert sinkhorn(cloud[:, torch.randperm(30)], cloud) < 1e-3
    point = torch.zeros(1, 20, 3, requires_grad=True)
    sinkhorn(point + torch.randn(1, 20, 3) * 0.01, cloud[:1, :20] + 1).backward()
    assert bool((point.grad < 0).all())  # downhill is towards the other cloud
    with pytest.raises(ConfigError, match="Give a blur"):
        Sinkhorn(blur=0)


def test_sinkhorn_equals_geomloss() -> None:
    geomloss = pytest.importorskip("geomloss")
    theirs = geomloss.SamplesLoss("sinkhorn", p=1, blur=0.01, scaling=0.5, diameter=10.0, backend="tensorized")
    one = torch.randn(3, 50, 6, requires_grad=True)
    other = torch.randn(3, 60, 6) + 0.3
    grads = []
    for loss in (theirs(one, other), Sinkhorn().of_answers(one, other)):
        grads.append((loss.detach(), *torch.autograd.grad(loss.sum(), one)))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-3)
    assert torch.allclose(grads[0][1], grads[1][1], atol=1e-5)


def test_a_cloud_is_encoded_whatever_the_order_of_its_points_and_its_row_has_its_divergence() -> None:
    of = stream("cloud")
    net: Any = model("cloud", of).eval()
    x = of[0].train.gather(torch.arange(4)).inputs
    assert torch.allclose(net.encode(x), net.encode(x[:, torch.randperm(12)]))
    mean, deviation = net.posterior(x)
    q = torch.distributions.Normal(mean, deviation)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    outputs = net(x)
    assert torch.allclose(outputs[:, -1], 0.001 * divergence, atol=1e-5)
    assert torch.allclose(chamfer(outputs, x), chamfer(net.answer(x), x) + outputs[:, -1].mean(), atol=1e-5)
    net.train()
    assert not torch.equal(net(x), net(x))  # draws of z
    with pytest.raises(UsageError, match="do not go with"):
        chamfer(torch.zeros(4, 7), x)


def test_the_flow_is_inverted_and_its_determinant_is_the_jacobians() -> None:
    net: Any = invertible(input_shape=(7,), classes=3, blocks=3, hidden=16, embedding=5, seed=0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    rows = torch.randn(4, 7)
    outputs = net(rows)
    assert torch.allclose(net.inverse(outputs[:, :3], rows[:, 3:]), rows[:, :3], atol=1e-4)
    for row, outcome in zip(rows, outputs):
        whole = torch.autograd.functional.jacobian(lambda x: net(x[None])[0, :3], row)
        jacobian = whole[:, :3]
        assert torch.allclose(jacobian.slogdet().logabsdet, outcome[3], atol=1e-4)
    drawn = net.sample(rows[:, 3:], 500, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(1), net.answer(rows[:, 3:]), atol=0.5)
    assert torch.equal(net.answer(rows), net.answer(rows[:, 3:]))  # what is sought is not looked at
    with pytest.raises(UsageError, match="side by side"):
        net(rows[:, 3:])


def test_a_coupling_block_equals_freias() -> None:
    modules = pytest.importorskip("FrEIA.modules")
    ours = Coupling(5, 2, hidden=8, clamp=2.0)
    nets = iter((ours.subnet1, ours.subnet2))
    theirs = modules.GLOWCouplingBlock([(5,)], dims_c=[(2,)], subnet_constructor=lambda a, b: next(nets), clamp=2.0)
    assert theirs.subnet1 is ours.subnet1
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, c = torch.randn(6, 5), torch.randn(6, 2)
    (expected,), determinant = theirs([x], c=[c])
    values, found = ours(x, c)
    assert torch.allclose(values, expected, atol=1e-5)
    assert torch.allclose(found, determinant, atol=1e-5)


# By name ---------------------------------------------------------------------------------------------------


def test_streams_recast_targets_and_refuse_what_they_cannot() -> None:
    data = synthetic(classes=4, features=6, samples=8, seed=0)
    recast = reconstruction(data, of={"name": "split", "experiences": 2})
    batch = recast[0].train.gather(torch.arange(3))
    assert torch.equal(batch.inputs, batch.targets)
    assert (recast.outputs, recast.classes, len(recast)) == (6, 0, 2)
    numbers = polynomial(samples=20)
    turned = inversion(numbers)[0].train.gather(torch.arange(2))
    assert torch.equal(turned.inputs[:, :1], turned.targets)
    with pytest.raises(ConfigError, match="kind='regression'"):
        inversion(data)
    with pytest.raises(ConfigError, match="stream `reconstruction`"):
        autoencoder(input_shape=(6,), classes=4)
    with pytest.raises(ConfigError, match="stream `inversion`"):
        invertible(input_shape=(6,), classes=7)


def test_a_loss_that_does_not_take_what_a_model_gives_is_refused_before_anything_is_loaded() -> None:
    for words, said in (
        (["stream=grouped", "stream.dataset={name: khi, path: x.npz}", "model=cloud_vae"], "chamfer or criterion=sink"),
        (["stream=inversion", "stream.dataset=polynomial", "model=invertible"], "Write criterion=flow"),
        (["source=open_pmd", "source.path=x", "source.inputs=[meshes/E]", "model=cloud_vae"], "chamfer or criterion=s"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve(compose(None, [*words, "criterion=mse", "references=[]"]).config)


JOBS: dict[str, list[str]] = {
    "autoencoder": ["stream=reconstruction", "stream.dataset=digits", "criterion=mse"],
    "conv_autoencoder": ["stream=reconstruction", "stream.dataset=digits", "criterion=l1", "model.channels=[4]"],
    "invertible": [
        "stream=inversion",
        "stream.dataset=polynomial",
        "criterion=flow",
        "model.blocks=2",
        "optimizer=Adam",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_job_names_the_model_and_its_run_predicts_exports_and_goes_on(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(None, [*JOBS[name], f"model={name}", "method=er", "references=[]"]).config
    run(config, tmp_path / "run", quiet=True)
    opened = holdfast.open(tmp_path / "run")
    batch = restore(tmp_path / "run").with_data()[0].test.gather(torch.arange(4))
    answers = opened.predict(batch.inputs)
    assert answers.shape == batch.targets.shape
    assert torch.allclose(answers, opened.predict(batch.inputs))
    program, about = export(tmp_path / "run", out=tmp_path / "model.pt2")
    assert about.is_file()
    loaded = torch.export.load(program).module()
    assert torch.allclose(loaded(batch.inputs), answers, atol=1e-4)
