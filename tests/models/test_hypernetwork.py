"""Partial hypernetworks: published sizes, any backbone at any cut, rows of several tasks, norms above the cut."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from holdfast.core.body import chain_of
from holdfast.core.errors import ConfigError, UsageError
from holdfast.core.forward import forward_task
from holdfast.methods import er, finetune, joint, lwf
from holdfast.models import MASKED, parameter_count
from holdfast.models.hypernetwork import Hypernetwork, hypernetwork
from holdfast.models.norms import TaskBatchNorm, replace_batch_norm
from holdfast.streams import split
from holdfast.streams.datasets import synthetic
from holdfast.training import Trainer

# Partial Hypernetworks for Continual Learning (Hemati et al. 2023), 20 tasks, sizes 32 / 50, 32 / 32:
# cut, parameters below, and for 100, 10 and 5 classes the generated values and the generator's parameters
PAPER = [
    ("SH", 0, 0, (1109240, 1094750, 1093945), (1272877, 795877, 769377)),
    ("SPv1", 1, 15140, (1094100, 1079610, 1078805), (1217122, 740122, 713622)),
    ("SPv2", 2, 66740, (1042500, 1028010, 1027205), (1119522, 642522, 616022)),
    ("SPv3", 3, 272340, (836900, 822410, 821605), (924322, 447322, 420822)),
    ("SPv4", 4, 1093140, (16100, 1610, 805), (533922, 56922, 30422)),
]
TENSORS = {"SH": 62, "SPv1": 47, "SPv2": 32, "SPv3": 17, "SPv4": 2}


@pytest.mark.parametrize(("name", "cut", "below", "generated", "parameters"), PAPER)
def test_the_reduced_resnet18_has_the_published_sizes_at_every_cut(name, cut, below, generated, parameters):
    for place, classes in enumerate((100, 10, 5)):
        for written in (name, cut):
            model = hypernetwork(
                input_shape=(3, 32, 32), classes=classes, backbone="resnet18", cut=written, tasks=20, hidden=(50, 32)
            )
            assert parameter_count(model.below) == below
            assert model.generator.generated == generated[place]
            assert len(model.generator.targets) == TENSORS[name]
            assert parameter_count(model.generator) == parameters[place]
            assert parameter_count(model) == below + parameters[place]


def test_the_published_split_mnist_setting_has_its_sizes():
    """Von Oswald et al. 2020; the count printed there has embeddings for ten tasks, the stream has five."""

    def made(tasks):
        return hypernetwork(
            input_shape=(784,),
            classes=10,
            backbone={"name": "mlp", "hidden": [400, 400]},
            generator="chunks",
            chunk=42000,
            hidden=(10, 10),
            embedding=96,
            chunk_embedding=96,
            tasks=tasks,
        )

    model = made(10)
    assert model.generator.generated == 478410
    assert model.generator.chunks == 12
    assert parameter_count(model) == 466152
    assert parameter_count(made(5)) == 466152 - 5 * 96


def test_the_latents_have_the_published_sizes():
    images = torch.rand(2, 3, 32, 32)
    for cut, shape in {
        "stem": (20, 32, 32),
        "layer1": (20, 32, 32),
        "layer2": (40, 16, 16),
        "layer3": (80, 8, 8),
        "layer4": (160, 4, 4),
        4: (160,),
        0: (3, 32, 32),
    }.items():
        model = hypernetwork(input_shape=(3, 32, 32), classes=10, backbone="resnet18", cut=cut)
        assert model.below(images).shape == (2, *shape)


def chain() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(first=nn.Linear(6, 8), tanh=nn.Tanh(), second=nn.Linear(8, 7), relu=nn.ReLU(), last=nn.Linear(7, 4))
    )


class Declared(nn.Module):
    """A user's own module that says in which stages it runs."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Sequential(nn.Tanh(), nn.Linear(5, 5))})
        self.head = nn.Linear(5, 4)

    def forward(self, inputs):
        return self.head(self.stages["b"](self.stages["a"](inputs)))


BACKBONES = {
    "mlp": ((1, 4, 4), {"name": "mlp", "hidden": [9, 8]}, 2),
    "mlp with norm": ((16,), {"name": "mlp", "hidden": [9, 8], "batch_norm": True}, 2),
    "linear": ((16,), "linear", 0),
    "cnn": ((3, 8, 8), {"name": "cnn", "channels": [4, 5], "hidden": [6]}, 3),
    "vit": ((3, 8, 8), {"name": "vit", "width": 8, "depth": 2, "heads": 2}, 3),
    "resnet18": ((3, 8, 8), {"name": "resnet18", "width": 2}, 4),
    "a chain of modules": ((6,), chain(), 2),
    "a module with stages": ((6,), Declared(), 2),
}


def made(name, cut, **more):
    shape, backbone, _ = BACKBONES[name]
    model = hypernetwork(
        input_shape=shape, classes=4, backbone=backbone, cut=cut, tasks=2, norm="group", seed=1, **more
    )
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    return model, torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("generator", ["heads", "chunks"])
def test_any_backbone_runs_at_every_cut_as_the_ordinary_network_with_the_generated_weights(name, generator):
    last = BACKBONES[name][2]
    for cut in range(last + 1):
        model, inputs = made(name, cut, generator=generator)
        torch.manual_seed(5)
        shape, backbone, _ = BACKBONES[name]
        twin = hypernetwork(input_shape=shape, classes=4, backbone=backbone, cut=cut, norm="group", seed=1)
        ordinary = copy.deepcopy(twin.upper)
        for task in (0, 1):
            for key, value in model.weights([task]).items():
                path, _, leaf = key.rpartition(".")
                setattr(ordinary.get_submodule(path), leaf, nn.Parameter(value[0].detach()))
            with forward_task(task):
                outputs = model(inputs)
            wanted = ordinary(model.below(inputs))
            members = slice(2 * task, 2 * task + 2)
            assert torch.allclose(outputs[:, members], wanted[:, members], atol=1e-5)
            assert (outputs[:, 2 - 2 * task : 4 - 2 * task] == MASKED).all()
        assert not list(model.upper.parameters())
    with pytest.raises(ConfigError, match=f"cut is {last + 1}.*0 .*to {last} "):
        made(name, last + 1)


def test_the_last_cut_generates_the_output_layer_alone_and_the_first_everything():
    model, _ = made("cnn", 3)
    assert list(model.generator.targets) == ["output.weight", "output.bias"]
    model, _ = made("cnn", 0)
    assert not list(model.below.parameters())


def test_outputs_of_the_task_s_classes_alone_are_those_of_the_whole_layer_put_elsewhere():
    shape = (6,)
    model = hypernetwork(input_shape=shape, classes=6, backbone=chain(), cut=1, tasks=2, task_classes=3, seed=1)
    model.head.assign(0, [4, 0])  # two of three outputs are used
    model.head.assign(1, [1, 2, 5])
    inputs = torch.rand(4, *shape)
    for task, members in ((0, [0, 4]), (1, [1, 2, 5])):
        weights = {name: value[0] for name, value in model.weights([task]).items()}
        raw = functional_call(model.upper, weights, (model.below(inputs),))
        with forward_task(task):
            outputs = model(inputs)
        assert torch.equal(outputs[:, members], raw[:, : len(members)])
        rest = [label for label in range(6) if label not in members]
        assert (outputs[:, rest] == MASKED).all()
    assert model.head.used(0).tolist() == [True, True, False]
    model.head.grow(9)
    assert model.head.width == 9
    with pytest.raises(UsageError, match=r"task 2 has 4 classes.*task_classes=4"):
        model.head.assign(2, [5, 6, 7, 8])


def test_rows_of_several_tasks_come_back_in_their_order_and_weights_are_made_once_a_task():
    model, inputs = made("mlp", 1)
    asked = []
    model.generator.register_forward_pre_hook(lambda _, arguments: asked.append(list(arguments[0])))
    tasks = torch.tensor([1, 0, 1, 1, 0])
    with forward_task(tasks):
        mixed = model(inputs)
    assert asked == [[0, 1]]
    for row, task in enumerate(tasks.tolist()):
        with forward_task(task):
            assert torch.allclose(mixed[row], model(inputs)[row], atol=1e-6)
    asked.clear()
    with forward_task(torch.ones(5, dtype=torch.int64)):
        model(inputs)
    with forward_task(1):
        model(inputs.repeat(50, 1, 1, 1))
    assert asked == [[1], [1]]


def test_no_tensor_in_the_graph_grows_with_the_batch_times_the_generated_weights():
    model = hypernetwork(input_shape=(6,), classes=4, backbone=chain(), tasks=2)
    model.head.assign(1, [0, 1, 2, 3])
    sizes = []
    for rows in (2, 64):
        sizes.append(0)

        def count(tensor):
            sizes[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), forward_task(1):
            model(torch.rand(rows, 6))
    grown = sizes[1] - sizes[0]
    assert 0 < grown <= 62 * 3 * (6 + 8 + 8 + 7 + 7 + 4)  # activations of 62 more rows, a few copies of each


def test_outputs_of_every_task_come_from_the_network_of_each():
    model, inputs = made("mlp", 1)
    with forward_task("all"):
        every = model(inputs)
    for task in (0, 1):
        with forward_task(task):
            members = slice(2 * task, 2 * task + 2)
            assert torch.allclose(every[:, members], model(inputs)[:, members], atol=1e-6)


def test_tasks_can_be_added_and_a_saved_model_of_more_tasks_is_loaded():
    model, inputs = made("mlp", 1)
    with forward_task(0):
        before = model(inputs)
    assert len(model.add_tasks(3)) == 2  # its embedding and its vectors
    model.head.assign(2, [3])
    with forward_task(0):
        assert torch.equal(model(inputs), before)
    fresh, _ = made("mlp", 1)
    fresh.load_state_dict(model.state_dict())
    twin = copy.deepcopy(fresh)
    with forward_task(2):
        assert torch.equal(model(inputs), twin(inputs))


@pytest.mark.parametrize("start", ["fresh", "copy"])
@pytest.mark.parametrize("there", [1, 3])
def test_a_new_task_begins_afresh_or_from_the_previous_task_s_embedding_as_it_is_then(start, there):
    model = hypernetwork(input_shape=(6,), classes=4, backbone=chain(), tasks=there, start=start, seed=0)
    for tasks in (1, 2):
        model.add_tasks(tasks)
        with torch.no_grad():
            model.generator.embeddings[tasks - 1].add_(1.0)  # training
    model.add_tasks(3)
    model.add_tasks(3)  # announced again: nothing is copied over what was learnt since
    first, second, third = (model.generator.embeddings[task] for task in range(3))
    if start == "copy":
        assert torch.equal(second, first + 1)
        assert torch.equal(third, second)
    else:
        assert not torch.allclose(second, first + 1)
        assert not torch.allclose(third, second)
    with torch.no_grad():
        third.add_(1.0)
    fresh = hypernetwork(input_shape=(6,), classes=4, backbone=chain(), tasks=there, start=start, seed=0)
    fresh.load_state_dict(model.state_dict())
    fresh.add_tasks(3)
    assert torch.equal(fresh.generator.embeddings[2], third)


def test_numbers_as_targets_are_not_masked():
    model = hypernetwork(input_shape=(1,), classes=1, backbone={"name": "mlp", "hidden": [5]}, tasks=3)
    with forward_task(2):
        outputs = model(torch.rand(4, 1))
    assert outputs.shape == (4, 1)
    assert (outputs > MASKED).all()


def test_a_task_that_is_yet_to_come_is_masked_in_evaluation_and_refused_in_training():
    model, inputs = made("mlp", 1)
    with forward_task(5):
        assert (model.eval()(inputs) == MASKED).all()
        with pytest.raises(UsageError, match="2 tasks"):
            model.train()(inputs)
    with pytest.raises(UsageError, match="no task is running"):
        model(inputs)


def test_instance_norm_is_batch_norm_of_one_image_alone_which_is_what_the_published_code_does():
    images = torch.randn(3, 4, 6, 6)
    norm = replace_batch_norm(nn.BatchNorm2d(4), "instance")
    weight, bias = torch.randn(4), torch.randn(4)
    outputs = functional_call(norm, {"weight": weight, "bias": bias}, (images,))
    alone = torch.cat([F.batch_norm(image[None], None, None, weight, bias, training=True) for image in images])
    assert torch.allclose(outputs, alone, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_with_every_norm_but_batch_norm_a_sample_s_outputs_do_not_depend_on_the_others(norm):
    model = hypernetwork(
        input_shape=(3, 16, 16), classes=4, backbone={"name": "resnet18", "width": 2}, norm=norm, tasks=1
    )
    model.head.assign(0, range(4))
    images = torch.rand(4, 3, 16, 16)
    with forward_task(0):
        assert torch.allclose(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-4)


def test_batch_norm_above_the_cut_has_statistics_for_each_task():
    model = hypernetwork(
        input_shape=(3, 8, 8), classes=4, backbone={"name": "resnet18", "width": 2}, norm="batch", tasks=2, seed=0
    )
    model.head.assign(0, [0, 1])
    model.head.assign(1, [2, 3])
    images = torch.rand(6, 3, 8, 8)
    with forward_task(0):
        model(images)
        alone = model.eval()(images)
    with forward_task(torch.tensor([0, 1, 0, 1, 1, 0])):
        model.train()(images)
    norms = [module for module in model.modules() if isinstance(module, TaskBatchNorm)]
    assert [len(norm.running_mean) for norm in norms] == [2] * 20
    assert not torch.equal(norms[0].running_mean[0], norms[0].running_mean[1])
    with forward_task(1):
        model.train()(images + 5)
    with forward_task(0):
        seen = model.eval()(images)
    assert not torch.equal(seen, alone)  # the mixed batch had rows of task 0
    fresh = hypernetwork(
        input_shape=(3, 8, 8), classes=4, backbone={"name": "resnet18", "width": 2}, norm="batch", tasks=2
    )
    fresh.load_state_dict(model.state_dict())
    with forward_task(0):
        assert torch.equal(fresh.eval()(images), seen)


def test_wrong_settings_are_refused_before_anything_is_built():
    def build(**more):
        return hypernetwork(**{"input_shape": (3, 16, 16), "classes": 4, "backbone": "resnet18", **more})

    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build(backbone="resnet")
    with pytest.raises(ConfigError, match=r"'mlp' cannot take.*hiden"):
        build(backbone={"name": "mlp", "hiden": [3]})
    with pytest.raises(ConfigError, match="did you mean 'layer4'"):
        build(cut="layer")
    with pytest.raises(ConfigError, match="did you mean 'heads'"):
        build(generator="head")
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        build(norm="grup")
    with pytest.raises(ConfigError, match="norm='group'"):
        build(backbone={"name": "mlp", "batch_norm": True})
    with pytest.raises(ConfigError, match="Bilinear does not say in which stages"):
        build(backbone=nn.Bilinear(2, 2, 2))
    with pytest.raises(ConfigError, match="1 or more"):
        build(task_classes=0)
    with pytest.raises(ConfigError, match="one pixel"):
        build(input_shape=(3, 8, 8))


def test_a_chain_whose_layers_share_a_parameter_is_refused():
    layer = nn.Linear(6, 6)
    with pytest.raises(ConfigError, match="shared by two layers"):
        hypernetwork(
            input_shape=(6,), classes=4, backbone=nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 4)), norm="none"
        )


def test_the_backbone_that_is_given_stays_as_it_was():
    backbone = chain()
    before = copy.deepcopy(backbone.state_dict())
    model = hypernetwork(input_shape=(6,), classes=4, backbone=backbone, cut=1)
    assert isinstance(model, Hypernetwork)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(model.below.first.weight, backbone.first.weight)


def test_stages_without_parameters_lie_below_a_numbered_cut_with_the_one_before_them():
    found = chain_of(chain())
    assert found.cuts == (0, 2, 4)
    assert found.position("first") == 1
    assert (found.position("SPv2"), found.position("HyperResNet18SPv1SH")) == (4, 2)


def digits_stream(experiences: int = 5):
    return split(
        synthetic(classes=10, features=8, samples=20, test_samples=10, seed=1), experiences=experiences, paradigm="task"
    )


@pytest.mark.parametrize("tasks", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("method", [joint, lambda: er(capacity=100, size=20), finetune, lambda: lwf()])
def test_it_is_trained_jointly_with_replay_and_with_distillation_as_any_other_model(method, tasks):
    model = hypernetwork(
        input_shape=(8,),
        classes=10,
        backbone={"name": "mlp", "hidden": [12]},
        generator="chunks",
        chunk=40,
        hidden=(16,),
        tasks=tasks,
        seed=0,
    )
    trainer = Trainer(method(), optimizer={"name": "Adam", "lr": 0.01}, batch_size=10, epochs=8, evaluate_before=False)
    events = trainer.fit(model, digits_stream())
    assert model.tasks == 5
    last = [event for event in events if event["event"] == "evaluate"][-5:]
    accuracy = [event["correct"] / event["samples"] for event in last]
    assert sum(accuracy) / 5 > (0.6 if method is finetune else 0.8)


def test_parameters_of_tasks_that_come_later_are_trained_and_resumed(tmp_path):
    def made():
        return hypernetwork(input_shape=(8,), classes=10, backbone={"name": "mlp", "hidden": [6]}, seed=0)

    class Keep:
        count, kept = 0, None

        def due(self, seconds, steps):
            self.count += 1
            return self.count == 50  # in the middle of the third task: 20 steps each

        def save(self, state):
            file = tmp_path / "state.pt"
            torch.save(state, file)
            self.kept = torch.load(file, weights_only=True)

    keep, whole, resumed = Keep(), made(), made()
    settings = {"optimizer": {"name": "Adam", "lr": 0.01}, "batch_size": 2, "evaluate": "none"}
    Trainer(finetune(), checkpoints=keep, **settings).fit(whole, digits_stream())
    before = made()
    before.add_tasks(5)
    moved = [not torch.equal(one, other) for one, other in zip(whole.generator.embeddings, before.generator.embeddings)]
    assert all(moved), "each task's embedding was trained"
    Trainer(finetune(), **settings).fit(resumed, digits_stream(), resume=keep.kept)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
