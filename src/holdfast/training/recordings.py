"""Steps that are recorded, compared, and run again with the decisions of the next one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.utils._pytree import tree_flatten, tree_map_only

from holdfast.core.decide import recorded_by
from holdfast.core.tape import Tape, Watch, alias_of, differences
from holdfast.core.walk import Held, changed, held_by, how_changed
from holdfast.training.decisions import Decisions, Recording, guard_of
from holdfast.training.inductor import CannotRun

T = TypeVar("T")

WARM = 2
"""Plain steps before a recording: the optimiser's state, the memory's columns and caches are made in them."""

MOST = 16
"""Recordings of batches of one shape that differ in what the host decided; more would hardly ever be run again."""

WAITING = 4
"""Steps recorded once that are kept, with all their tensors, until an equal one comes."""

PATIENCE = 4
"""Steps that could not be captured, none that could between them, after which no more are recorded for a while."""

UNLIKE = 32
"""Steps in a row that were recorded and were not like any before, after which no more are recorded for a while."""

PAUSE = 100
"""Steps of the first such while; each is twice as long as the one before."""

TOLD = 5
"""Problems of one step that are told, at most."""

AUDIT = 1000
"""Runs of a recording after which the step is recorded once more, and compared."""


class Recordings:
    """Runs a step as a recording of it where there is one that fits.

    Args:
        roots: everything that holds what steps change, by name.
        decisions: of the host.
        ready: makes of a tape what runs it.
        mark: marks the numbers on a tape that are asked for at each run.
        baked: the numbers of the host that are not.
        without: objects that hold nothing that a step changes.

    Attributes:
        counts: steps that ran `plain`, were `recorded`, and were `run` as recorded.
        problems: why steps were not captured, in the order in which that was noticed.
        ahead: decisions of the coming step that somebody made already, in order.
        resting: for how many more steps nothing is recorded.
    """

    def __init__(
        self,
        roots: Callable[[], Mapping[str, object]],
        decisions: Decisions,
        ready: Callable[[Tape], Callable[[], None]],
        mark: Callable[[Tape], None] = lambda tape: None,
        baked: Callable[[], Hashable] = lambda: None,
        without: Sequence[object] = (),
    ) -> None:
        self.roots = roots
        self.decisions = decisions
        self.ready = ready
        self.mark = mark
        self.baked = baked
        self.without = without
        self.counts = {"plain": 0, "recorded": 0, "run": 0}
        self.problems: list[str] = []
        self.ahead: list[Any] = []
        self.forget()

    def forget(self) -> None:
        """Nothing that was recorded is valid any more; what cannot be captured may be tried again."""
        self.kept: dict[Hashable, list[Recording]] = {}
        self.waiting: dict[Hashable, list[Recording]] = {}
        self.seen: dict[Hashable, int] = {}
        self.refused: dict[Hashable, int] = {}
        self.failed, self.unlike, self.pauses, self.resting = 0, 0, 0, 0
        self._prefix: Hashable = None

    def look(self) -> dict[str, Held]:
        """What stands where now."""
        with DisableTorchFunction():
            return held_by(self.roots(), self.without)

    # One step --------------------------------------------------------------------------------------------

    def step(self, key: Hashable, body: Callable[[], Any], as_written: Callable[[], Any], fed: list[Tensor]) -> Any:
        """Make one step.

        Args:
            key: what steps must have in common to be recorded together: the shapes of what they are given.
            body: the step as a function of `fed`.
            as_written: the step in an ordinary way.
            fed: tensors that hold what this step is given.

        Returns:
            What the function returned that made the step; tensors of a recording hold that until the next step.
        """
        self.decisions.made.clear()
        fits, made = self.fitting(self.kept.get(key, []))
        audited = fits is not None and fits.runs + 1 >= fits.audit
        if fits is None or audited:
            self.decisions.made.extend(made)  # for the step that is made in another way, or recorded again
        if fits is not None and not audited:
            for decision, value in zip(fits.decisions, made):
                if isinstance(decision.value, Tensor):
                    _set(decision.value, value)
            assert fits.run is not None
            fits.run()
            fits.runs += 1
            for _, put, tensor in fits.after:
                put(tensor)
            self.counts["run"] += 1
            return fits.outputs
        self.seen[key] = self.seen.get(key, 0) + 1
        if fits is not None:
            fits.runs += 1
            fits.audit += fits.between
        elif self._is_left(key):
            self.resting = max(0, self.resting - 1)
            return self._plainly(as_written)
        return self._record(key, body, fed, fits)

    def _is_left(self, key: Hashable) -> bool:
        """Whether the step is made as written, and no recording of it is tried."""
        tried = self.refused.get((key, self._prefix), 0) > 1
        return tried or self.resting > 0 or self.seen[key] <= WARM or len(self.kept.get(key, [])) >= MOST

    def fitting(self, kept: list[Recording]) -> tuple[Recording | None, list[Any]]:
        """Make this step's decisions, and find the recording that they fit.

        Returns:
            The recording, None where none fits, and the decisions that were made.
        """
        baked = self.baked() if kept else None
        self._prefix = None
        ahead, self.ahead = self.ahead, []
        left, made = [one for one in kept if one.baked == baked], list[Any]()
        while left:
            whole = next((one for one in left if len(one.decisions) == len(made)), None)
            if whole is not None:
                return whole, made
            position = len(made)
            value = ahead[position] if position < len(ahead) else left[0].decisions[position].make()
            made.append(value)
            left = [one for one in left if one.decisions[position].guard == guard_of(value)]
        made += ahead[len(made) :]
        if kept:
            self._prefix = (baked, tuple(guard_of(value) for value in made))
        return None, made

    def _plainly(self, as_written: Callable[[], Any]) -> Any:
        before = self.look() if self.kept or self.waiting else None
        self.decisions.noted, self.decisions.look = None, self.look if before is not None else None
        with recorded_by(self.decisions):
            out = as_written()
        self.counts["plain"] += 1
        if before is not None:
            self._stay_valid(before)
        return out

    def _stay_valid(self, before: Mapping[str, Held]) -> None:
        """Put back the tensors that recordings work on where a plain step put others in their places."""
        used = {group for ones in (*self.kept.values(), *self.waiting.values()) for one in ones for group in one.read}
        after = self.look()
        others = {path for path in changed(before, after) if path not in self.decisions.ever}
        moved = [path for path in others if path in before and before[path].alias is not None]
        replaced = [path for path in moved if before[path].storage in used]
        if others - set(moved) or not all(path in after and before[path].replaceable(after[path]) for path in replaced):
            self.kept, self.waiting, self.seen = {}, {}, {}
            return
        values = [after[path].bare.clone() for path in replaced]  # type: ignore[union-attr]
        for path, value in zip(replaced, values):
            before[path].bare.copy_(value)  # type: ignore[union-attr]
            before[path].take(after[path])

    # A recording -----------------------------------------------------------------------------------------

    def _record(self, key: Hashable, body: Callable[[], Any], fed: list[Tensor], fits: Recording | None) -> Any:
        """Make the step while it is recorded; after the second of two that agree it can be run again."""
        decisions, tape = self.decisions, Tape()
        decisions.noted, decisions.excused, decisions.watch = [], set(), Watch(tape)
        decisions.look = self.look
        before = self.look()
        try:
            with recorded_by(decisions), torch.autograd.set_multithreading_enabled(False), decisions.watch, tape:
                out = body()
            self.mark(tape)
            made = Recording(tape, decisions.noted, self.baked(), fed=fed, looked=frozenset(decisions.watch.looked))
        finally:
            decisions.noted = None
        self.counts["recorded"] += 1
        problems = [*dict.fromkeys(tape.problems), *self._write_back(made, before)]
        made.outputs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), out)
        for kept, tensor in zip(tensors_of(made.outputs), tensors_of(out)):
            tape.copy(kept, tensor)
        tape.finish()
        waiting = self.waiting.setdefault(key, [])
        match = fits if fits is not None else next((one for one in waiting if one.guards == made.guards), None)
        if match is not None and not problems:
            problems = self._disagreements(match, made, fed) or self._torn(made)
        if problems:
            self._stay_valid(before)  # what this step changed, others may have been recorded with
            self._refuse((key, self._prefix), problems, fits)
        elif fits is None and match is None:
            self.unlike += 1
            if self.unlike == UNLIKE and waiting:
                self._refuse((key, None), [_unlike(waiting[-1], made)], None, rest=True)
            waiting.append(made)
            del waiting[:-WAITING]
        elif fits is None and match is not None:
            waiting.remove(match)
            match.tape.release()
            kept_nodes = tape.nodes
            tape.prune()
            made.wrote = frozenset(tape.groups[number] for node in tape.nodes for number in node.writes)
            try:
                made.run = self.ready(tape)
            except CannotRun as error:
                self._refuse((key, self._prefix), [str(error)], None, rest=True)
                return out
            tape.nodes = kept_nodes  # to compare with later
            tape.release()
            made.audit = made.between = AUDIT
            self.kept.setdefault(key, []).append(made)
            self.failed = self.unlike = 0
        return out

    def _disagreements(self, one: Recording, other: Recording, fed: list[Tensor]) -> list[str]:
        tensors = [*fed, *(decision.value for decision in other.decisions if isinstance(decision.value, Tensor))]
        numbers = [number for tensor in tensors if (number := other.tape.number_of(tensor)) is not None]
        for before, after in zip(one.decisions, other.decisions):
            if before.told != after.told:
                return [f"a decision works with what was so in the step it was first made in ({after.line})"]
        outputs = [number for t in tensors_of(other.outputs) if (number := other.tape.number_of(t)) is not None]
        puts = [number for _, _, t in other.after if (number := other.tape.number_of(t)) is not None]
        return differences(one.tape, other.tape, [*numbers, *outputs, *puts])

    def _write_back(self, made: Recording, before: Mapping[str, Held]) -> list[str]:
        """Let the step leave its results where it found what they replace. Returns what cannot be done so."""
        tape, after, problems = made.tape, self.look(), []
        made.read = read = frozenset(tape.groups[number] for number in tape.external)
        paths = changed(before, after) - self.decisions.excused
        back: list[tuple[str, Held | None, Held]] = []
        for path in sorted(paths):
            old, now = before.get(path, Held()), after.get(path, Held())
            if old.bare is None or old.alias is None or now.bare is None:
                problems.append(f"{path} {how_changed(before, after, path)} in a step, outside of a decision")
                continue
            others = any(
                one.alias is not None and one.alias[0] == old.alias[0] for p, one in after.items() if p not in paths
            )
            if old.replaceable(now) and not others:
                back.append((path, old, now))
            elif now.put is None or old.storage in read:
                why = "others hold what it was" if others else "what it was is read"
                problems.append(f"{path} is replaced in a step by a tensor of another place, while {why}")
            else:  # nobody looks at it before the next one comes
                back.append((path, None, now))
        if problems:
            return problems
        values = [tape.fresh(now.bare) for _, _, now in back if now.bare is not None]
        for (path, earlier, now), value in zip(back, values):
            if earlier is not None and earlier.bare is not None:
                tape.copy(earlier.bare, value)
                earlier.take(now)
                if now.put is not None and earlier.tensor is not None:
                    made.after.append((path, now.put, earlier.tensor))
            elif now.put is not None:
                kept = value.clone()
                tape.copy(kept, value)
                made.after.append((path, now.put, kept))
        return []

    def _torn(self, made: Recording) -> list[str]:
        """Whether something that recordings leave in several places is read by one of them, which knows but one."""
        every = [made, *(one for ones in self.kept.values() for one in ones)]
        places: dict[str, set[int]] = {}
        for one in every:
            for path, _, kept in one.after:
                places.setdefault(path, set()).add(alias_of(kept)[0])
        for path, written_to in places.items():
            if len(written_to) > 1 and any(written_to & one.read for one in every):
                return [f"{path} is a tensor of another size from step to step, and read before it is replaced"]
        return []

    def _refuse(
        self,
        signature: tuple[Hashable, Hashable],
        problems: list[str],
        fits: Recording | None,
        rest: bool = False,
    ) -> None:
        self.problems = list(dict.fromkeys([*self.problems, *problems[:TOLD]]))
        self.failed += 1
        if signature[1] is not None:
            self.refused[signature] = self.refused.get(signature, 0) + 1
        if rest or fits is not None or self.failed >= PATIENCE:  # after a failed audit nothing here can be trusted
            self.waiting, self.failed, self.unlike, self.pauses = {}, 0, 0, self.pauses + 1
            self.kept = {} if fits is not None else self.kept
            self.resting = PAUSE * 2**self.pauses


def _unlike(one: Recording, other: Recording) -> str:
    """Why two recordings of batches of one shape are not the same step."""
    if one.baked != other.baked:
        return "a number of the optimiser changes at every step (a momentum, or a rate that is a constant of its step)"
    for a, b in zip(one.decisions, other.decisions):
        if a.guard != b.guard:
            return f"the host decides otherwise at every step ({b.line})"
    return "the host makes more decisions at some steps than at others"


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in `tree`, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _set(kept: Tensor, value: Any) -> None:
    if isinstance(value, Tensor):
        kept.copy_(value, non_blocking=True)
    else:
        kept.fill_(value)
