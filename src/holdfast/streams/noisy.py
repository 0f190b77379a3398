"""The noisy stream: new classes in each experience, whose images are corrupted in a way of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from holdfast.core.errors import ConfigError, unknown
from holdfast.core.experience import Stream
from holdfast.core.ranges import BelowOne, Count, ranged
from holdfast.streams.corruptions import CORRUPTIONS
from holdfast.streams.dataset import Dataset
from holdfast.streams.scenario import Paradigm, Scenario, check_experiences, check_paradigm, make_stream
from holdfast.streams.tables import labels_of_first_appearance, ordered_classes, whole_classes


@ranged
def noisy(
    dataset: Dataset,
    experiences: Count = 4,
    classes_per_experience: Count = 5,
    corruptions: Sequence[str | dict[str, Any]] = ("clean", "solarized", "blurred", "grey"),
    corrupt: bool = True,
    class_order: Literal["natural", "random"] | list[int] = "random",
    paradigm: Paradigm = "task",
    validation: BelowOne = 0.0,
    validation_seed: int = 0,
    seed: int = 0,
) -> Stream:
    """Each experience brings new classes, and its images, training and test alike, are corrupted in their own way.

    The noisy stream of "Partial Hypernetworks for Continual Learning" (Hemati et al., CoLLAs 2023): clean, then
    solarized from half the range on, then blurred (sigma 0.9), then stretched in contrast, grey and blurred. Classes
    that no experience has room for are left out. Difference: the last blur has sigma 0.65, there drawn from 0.6 to 0.7
    for each image.

    Args:
        dataset: images.
        experiences: how many; at most as many as corruptions.
        classes_per_experience: new classes of each.
        corruptions: one for each experience: "clean", "solarized", "blurred", "grey", or a transform as in saved
            scenarios (`{"kind": "blur", "size": 5, "sigma": 2.0}`, `{"kind": "chain", "of": [...]}`).
        corrupt: false leaves all images as they are, for comparison.
        class_order: "natural", "random" (by the seed), or every class once in order of appearance.
        paradigm: "class", "task" or "domain" incremental; in the last labels are positions within an experience.
        validation: fraction of each class held out from training.
        validation_seed: of the held-out choice.
        seed: of a random class order.

    Raises:
        ConfigError: no images, too few classes, more experiences than corruptions, or an unknown corruption.

    Example:
        >>> from holdfast.streams.datasets import digits
        >>> stream = noisy(digits(), experiences=3, classes_per_experience=3)
        >>> [experience.name for experience in stream]
        ['clean', 'solarized', 'blurred']
    """
    check_paradigm(paradigm)
    check_experiences(experiences)
    dataset.targets()
    if len(dataset.input_shape) != 3:
        raise ConfigError(f"{dataset.name} has inputs of shape {dataset.input_shape}. Only images can be corrupted.")
    if experiences > len(corruptions):
        raise ConfigError(f"{experiences} experiences with {len(corruptions)} corruptions. Give one for each.")
    wanted = experiences * classes_per_experience
    if classes_per_experience < 1 or wanted > dataset.classes:
        raise ConfigError(
            f"{experiences} experiences of {classes_per_experience} classes from the {dataset.classes} classes of "
            f"{dataset.name}. Give fewer of either."
        )
    order = ordered_classes(class_order, dataset.classes, seed)
    table = whole_classes(order, [classes_per_experience] * experiences)
    labels = labels_of_first_appearance(table, order)
    if paradigm == "domain":
        labels = [label if label < 0 else label % classes_per_experience for label in labels]
    names, transforms = [], []
    for corruption in list(corruptions)[:experiences]:
        if isinstance(corruption, str) and corruption not in CORRUPTIONS:
            raise ConfigError(unknown("corruption", corruption, CORRUPTIONS))
        described = CORRUPTIONS[corruption] if isinstance(corruption, str) else dict(corruption)
        names.append(corruption if isinstance(corruption, str) else str(described.get("kind")))
        transforms.append(described if corrupt else {"kind": "none"})
    return make_stream(
        Scenario(
            name="noisy",
            paradigm=paradigm,
            experiences=experiences,
            classes=dataset.classes,
            table=table,
            labels=labels,
            class_order=order,
            seed=seed,
            validation=validation,
            validation_seed=validation_seed,
            transforms=transforms,
            extra={"names": names if corrupt else ["clean"] * experiences},
        ),
        dataset,
    )
