"""Rows as preallocated columns of tensors: how fields become columns, and how columns are written and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError
from holdfast.core.experience import Tree
from holdfast.core.tree import Fill, Structure, flatten, longest, padded, restore, row_count

Slots = slice | Tensor
"""Where rows lie: a slice of consecutive slots, or an int64 vector without repeats."""

FIXED = ("inputs", "targets")
"""Fields that define a sample; their columns never widen."""


class Array:
    """A tensor on the CPU as numpy sees it: the same memory, in a copy of both too.

    Args:
        tensor: of a type that numpy has.

    Raises:
        TypeError: for a tensor that numpy cannot see.
    """

    __slots__ = ("array", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.array = tensor, tensor.numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.tensor,)


class Storage:
    """Columns of `capacity` slots, created from the shapes and dtypes of the first rows written.

    A dtype stays what it was (images stay uint8), and a tree of inputs becomes one column per tensor. What is written
    is copied and detached, so no batch, data set or graph is kept alive.

    **NaN padding.** A head that grows gives wider logits. Writing wider rows to a float column (other than those of
    `inputs` and `targets`) widens it along its last dimension; rows that were written narrower are padded with NaN.
    A reader masks them: `valid = ~logits.isnan()`.

    Args:
        capacity: number of slots.
        device: where the columns lie; None takes the device of the first rows.
        fill: what columns are padded with whose rows are of different lengths (text); None refuses such rows.
        gives: the device that rows are read to; None leaves them where they lie.

    Attributes:
        ragged: whether rows of different lengths were padded.

    Example:
        >>> storage = Storage(capacity=4)
        >>> storage.write(slice(0, 2), {"inputs": torch.tensor([[1], [2]], dtype=torch.uint8)})
        >>> storage.read(torch.tensor([1]))["inputs"], storage.nbytes
        (tensor([[2]], dtype=torch.uint8), 4)
    """

    __slots__ = (
        *("_arrays", "_plain", "_spare"),
        *("capacity", "columns", "device", "fill", "gives", "ragged", "structure"),
    )

    def __init__(
        self,
        capacity: int,
        device: torch.device | str | None = None,
        fill: Fill | None = None,
        gives: torch.device | None = None,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"a storage of {capacity} slots can hold nothing. Give a capacity of 1 or more.")
        self.capacity = capacity
        self.device = None if device is None else torch.device(device)
        self.columns: dict[str, Tensor] = {}
        self.structure: Structure = {}
        self._plain = True
        self._spare = False
        self._arrays: dict[str, Array] = {}  # of the columns
        self.fill = fill
        self.gives = gives
        self.ragged = False

    def write(self, slots: Slots, rows: Mapping[str, Tree]) -> None:
        """Copy `rows` into `slots`, one row each.

        Args:
            slots: a slice without step, or distinct int64 indices.
            rows: the same fields at every call, each `[len(slots), ...]`.

        Raises:
            DataError: other fields, shapes or kinds of dtype than those of the first rows. Nothing is written then.
        """
        values, structure = flatten(rows)
        if not self.columns:
            self._create(values, structure)
        elif structure != self.structure:
            raise DataError(
                f"rows with fields {structure} cannot join a memory with fields {self.structure}. "
                "Pass the same fields at every insertion, or clear the memory first."
            )
        count = row_count(values)
        wanted = slots.stop - slots.start if isinstance(slots, slice) else slots.numel()
        if count != wanted:
            raise DataError(f"{count} rows for {wanted} slots. Give exactly one row for each slot.")
        values = {name: self._as_long(name, value) for name, value in values.items()}
        wider = [name for name, value in values.items() if not self._fits(name, value)]
        for name in wider:
            self._widen(name, values[name].shape[-1])
        if isinstance(slots, Tensor):
            slots = slots.to(self.device)
        for name, value in values.items():
            self.columns[name][slots] = value.detach().to(self.device, self.columns[name].dtype)

    def write_same(self, incoming: Slots, slots: Slots, rows: Mapping[str, Any]) -> bool:
        """The rows at `incoming` into `slots`, if they are like those before; the quick way for every step.

        Args:
            incoming: which rows, a slice or distinct int64 indices on the CPU.
            slots: where to, likewise.
            rows: fields as `write` takes them, all rows of the batch; an int stands for that value in every row.

        Returns:
            False, with nothing written, where `write` has to look closer: other fields, shapes, dtypes or devices.
        """
        if not self._alike(rows):
            return False
        columns, device = self.columns, self.device
        if isinstance(slots, slice):
            for name, value in rows.items():
                columns[name][slots] = value if isinstance(value, int) else value[incoming]
            return True
        places, chosen = slots.to(device), incoming.to(device)  # type: ignore[union-attr]
        for name, value in rows.items():
            if isinstance(value, int):
                columns[name].index_fill_(0, places, value)
            else:
                columns[name].index_copy_(0, places, value.index_select(0, chosen))
        return True

    def write_few(self, incoming: list[int], slots: list[int], rows: Mapping[str, Any]) -> bool:
        """As `write_same`, row by row through numpy where that can be: a sixth of the time for the rows of a batch.

        Args:
            incoming: which rows.
            slots: where to.
            rows: as for `write_same`.
        """
        columns, arrays, pairs = self.columns, self._arrays, []
        if not self._plain or len(rows) != len(columns):
            return False
        try:
            for name, value in rows.items():
                known = arrays.get(name)
                if known is None or known.tensor is not columns[name]:
                    known = arrays[name] = Array(columns[name])
                if not isinstance(value, int):
                    value = value.numpy()
                    if value.dtype != known.array.dtype or value.shape[1:] != known.array.shape[1:]:
                        return False
                pairs.append((known.array, value))
        except (KeyError, AttributeError, TypeError, RuntimeError):  # other fields; a GPU; no type of numpy's; a graph
            return False
        for array, value in pairs:
            for row, slot in zip(incoming, slots):
                array[slot] = value if isinstance(value, int) else value[row]
        return True

    def _alike(self, rows: Mapping[str, Any]) -> bool:
        """Whether rows are like those before; an int stands for that value in every row."""
        columns, device = self.columns, self.device
        if not self._plain or rows.keys() != columns.keys():
            return False
        for name, value in rows.items():
            if isinstance(value, int):
                continue
            column = columns[name]
            alike = isinstance(value, Tensor) and value.dtype is column.dtype and value.device == device
            if not alike or value.shape[1:] != column.shape[1:] or value.requires_grad:
                return False
        return True

    def with_spare(self, rows: Mapping[str, Any], count: int) -> bool:
        """Make a slot behind the last, for rows that are not kept, if rows are like those before.

        Args:
            rows: fields as `write_same` takes them.
            count: rows of each field that is not an int.
        """
        values, structure = flatten({name: value for name, value in rows.items() if not isinstance(value, int)})
        if set(structure) | set(rows) != set(self.structure) or not all(
            name in self.columns and len(value) == count and self._fits(name, value) for name, value in values.items()
        ):
            return False
        if not self._spare:
            self._spare = True
            self.columns = {name: torch.cat((c, c.new_zeros(1, *c.shape[1:]))) for name, c in self.columns.items()}
        return True

    def write_spare(self, slots: Tensor, rows: Mapping[str, Any]) -> None:
        """All `rows`, each into its slot; of those for the spare slot, `capacity`, any one ends there.

        Args:
            slots: `[rows]` int64 on the storage's device.
            rows: as `with_spare` took them.
        """
        values, _ = flatten({name: value for name, value in rows.items() if not isinstance(value, int)})
        for name, value in values.items():
            column = self.columns[name]
            column.index_copy_(0, slots, value.detach().to(column.device, column.dtype))
        for name, value in rows.items():
            if isinstance(value, int):
                self.columns[name].index_fill_(0, slots, value)

    def read(self, slots: Slots) -> dict[str, Tree]:
        """A copy of the rows in `slots`, in that order; repeats are allowed here.

        Args:
            slots: a slice, or int64 indices on the storage's device.
        """
        columns = {}
        if isinstance(slots, slice):
            for name, column in self.columns.items():
                columns[name] = column[slots].clone()
        else:  # loops, and not comprehensions: this is done at every step
            for name, column in self.columns.items():
                columns[name] = column.index_select(0, slots)
        if self.gives is not None:
            columns = {name: column.to(self.gives) for name, column in columns.items()}
        return columns if self._plain else restore(columns, self.structure)  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, empty slots included."""
        return sum(column[: self.capacity].nbytes for column in self.columns.values())

    def clear(self) -> None:
        """Release every column; the next rows written may have other fields."""
        self.columns, self._arrays = {}, {}
        self.structure = {}
        self._plain = True
        self._spare = False

    def to(self, device: torch.device | str) -> Storage:
        """Move the columns to `device`, in place; returns itself."""
        self.device, self._arrays = torch.device(device), {}
        self.columns = {name: column.to(self.device) for name, column in self.columns.items()}
        return self

    def state(self, rows: int | None = None) -> dict[str, Any]:
        """A copy of the first `rows` slots (None: of all), as tensors and plain values.

        Args:
            rows: how many leading slots are in use.
        """
        last = self.capacity if rows is None else rows
        columns = {name: column[:last].clone() for name, column in self.columns.items()}
        state = {"capacity": self.capacity, "structure": dict(self.structure), "columns": columns}
        return {**state, "ragged": True} if self.ragged else state

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, on this storage's device.

        Args:
            state: of a storage with the same capacity.

        Raises:
            ConfigError: the capacities differ.
        """
        if state["capacity"] != self.capacity:
            raise ConfigError(
                f"a saved memory of {state['capacity']} slots does not fit one of {self.capacity}. "
                f"Build the memory with capacity={state['capacity']}."
            )
        self.clear()
        self.ragged = bool(state.get("ragged"))
        columns = state["columns"]
        if columns:
            self._create(columns, dict(state["structure"]))
            for name, value in columns.items():
                self.columns[name][: value.shape[0]] = value.to(self.device)

    def _create(self, values: Mapping[str, Tensor], structure: Structure) -> None:
        row_count(values)
        if self.device is None:
            self.device = next(iter(values.values())).device
        self.columns = {
            name: torch.empty((self.capacity, *value.shape[1:]), dtype=value.dtype, device=self.device)
            for name, value in values.items()
        }
        self.structure = structure
        self._plain = all(shape is None for shape in structure.values())
        self._spare = False

    def _fits(self, name: str, value: Tensor) -> bool:
        """Whether rows fit their column as it is; False where it must widen; an error where it cannot."""
        column = self.columns[name]
        both_float = column.dtype.is_floating_point and value.dtype.is_floating_point
        if column.dtype != value.dtype and not both_float:
            raise DataError(
                f"column {name!r} holds {column.dtype} and got {value.dtype}. "
                "Convert the rows to the dtype of the first ones."
            )
        if column.shape[1:] == value.shape[1:]:
            return True
        growable = both_float and value.ndim == column.ndim > 1 and name.partition(".")[0] not in FIXED
        if growable and column.shape[1:-1] == value.shape[1:-1] and column.shape[-1] < value.shape[-1]:
            return False
        raise DataError(
            f"column {name!r} holds rows of shape {tuple(column.shape[1:])} and got {tuple(value.shape[1:])}. "
            "Give rows of the first shape; only float columns beside inputs and targets may grow, and only wider. Text"
            " of different lengths is padded where the model's embedding has a padding_idx, or with"
            " Continual(..., pad=0)."
        )

    def _as_long(self, name: str, value: Tensor) -> Tensor:
        """Rows as long as their column, which grows with longer ones; unchanged where the padding is unknown."""
        column = self.columns[name]
        grows = value.ndim == column.ndim == 2 and name.partition(".")[0] not in FIXED
        if self.fill is None or grows or value.ndim != column.ndim or value.shape[1:] == column.shape[1:]:
            return value
        fill = self.fill(name, value)
        if fill is None:
            return value
        shape = longest([value.shape[1:], column.shape[1:]])
        self.columns[name], self.ragged = padded(column, shape, fill), True
        return padded(value, shape, fill)

    def _widen(self, name: str, width: int) -> None:
        old = self.columns[name]
        new = old.new_full((*old.shape[:-1], width), torch.nan)
        new[..., : old.shape[-1]] = old
        self.columns[name] = new
