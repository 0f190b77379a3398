"""The toy data of wandering Gaussians: where they are, what they are called, and how they move."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from holdfast.core.errors import ConfigError
from holdfast.sources import TimeDependentDataset, Toy8, generate_toy8
from holdfast.sources.toys import (
    CENTRES,
    TimeDependentStream,
    labels_with_time,
    points_on_circle,
    shifted,
    td_arrays,
    td_gen,
    tdds_arrays,
)


def test_the_gaussians_lie_at_the_corners_of_an_octagon_and_have_the_variance_asked_for() -> None:
    x, y = generate_toy8("all", npoints=8 * 4000, scale=0.04, seed=3)
    for label, centre in enumerate(CENTRES):
        mine = x[y[:, label] == 1]
        assert len(mine) == 4000
        torch.testing.assert_close(mine.mean(0), torch.tensor(centre), atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(mine.T), 0.04 * torch.eye(2), atol=0.004, rtol=0)
    sides = [torch.dist(torch.tensor(a), torch.tensor(b)) for a, b in zip(CENTRES, CENTRES[1:] + CENTRES[:1])]
    torch.testing.assert_close(torch.stack(sides), torch.full((8,), 2.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "counts"), [("all", [2] * 8), ("some", [8, 4, 2, 2, 0, 0, 0, 0]), ("none", [16, *[0] * 7])]
)
def test_labels_are_one_hot_and_shared_as_the_kind_says(kind: str, counts: list[int]) -> None:
    _, y = generate_toy8(kind, npoints=16)  # type: ignore[arg-type]
    assert y.shape == (16, 8)
    assert y.sum(0).int().tolist() == counts


def test_numbers_that_are_no_multiple_of_eight_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        generate_toy8(npoints=12)
    with pytest.raises(ConfigError, match="did you mean 'some'"):
        generate_toy8("sone")  # type: ignore[arg-type]


def test_absolute_and_relative_time_agree_for_linear_functions_that_begin_at_zero() -> None:
    x, y = generate_toy8(npoints=64)
    for times in ([0.0, 0.5, 2.0, 2.25], None):
        xs, ys = td_arrays(x, y, time_func_mode="abs", time=times)
        us, vs = td_arrays(x, y, time_func_mode="rel", time=times)
        torch.testing.assert_close(xs, us)
        torch.testing.assert_close(ys, vs)
    assert xs.shape == (10, 64, 2)


def test_relative_time_leaves_the_first_step_untouched_and_labels_tell_the_time() -> None:
    x, y = generate_toy8(npoints=8)
    (first, labels), (second, later) = td_gen(x, y, time_func_mode="rel", time=[3.0, 4.0])
    assert torch.equal(first, x)
    assert torch.equal(labels, y)
    torch.testing.assert_close(second, x + 1)
    assert later.max() == 2
    assert torch.equal(later == 0, y == 0)
    (moved, _) = next(td_gen(x, y, time_func_mode="abs", time=[3.0]))
    torch.testing.assert_close(moved, x + 3)


def test_the_data_set_is_the_absolute_arrays_and_works_with_a_loader() -> None:
    x, y = generate_toy8(npoints=32)
    data = TimeDependentDataset(x, y, shifted, labels_with_time, dt=0.5)
    xs, ys = tdds_arrays(data, 4)
    us, vs = td_arrays(x, y, time=[0.0, 0.5, 1.0, 1.5])
    torch.testing.assert_close(xs, us)
    torch.testing.assert_close(ys, vs)
    loaded = next(iter(DataLoader(data, batch_size=32)))
    torch.testing.assert_close(loaded[0], us[-1])


def test_the_iterable_goes_on_for_ever_one_step_later_each_time_round() -> None:
    x, y = generate_toy8(npoints=8)
    stream = TimeDependentStream(TimeDependentDataset(x, y, dt=1.0))
    rows = torch.stack([row for row, _ in itertools.islice(stream, 24)])
    torch.testing.assert_close(rows[16:], x + 2)


def test_the_source_says_where_it_changes_and_gives_every_sample_of_a_time() -> None:
    source = Toy8(npoints=16, steps=3, dt=1.0, batch_size=6)
    batches = list(source.batches())
    assert source.length == len(batches) == 9
    assert source.drifts == [16, 32]
    rows = torch.cat([batch.inputs for batch in batches])  # type: ignore[misc]
    torch.testing.assert_close(rows[32:].sum(0), rows[:16].sum(0) + 32)


def test_points_on_a_circle_are_equally_far_apart() -> None:
    points = points_on_circle(5, radius=2.0)
    assert torch.allclose(points.norm(dim=1), torch.tensor(2.0))
    assert torch.allclose(torch.cdist(points, points.roll(1, 0)).diagonal(), torch.tensor(2.351141))
