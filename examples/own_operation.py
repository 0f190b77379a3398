"""An operation of your own: output weights of old classes are frozen, and one line composes it with replay.

python examples/own_operation.py
"""

from holdfast import Experience, Method, Operation, Services, Step, Trainer, datasets, metrics, models, streams
from holdfast.operations import Remember, Replay


class FreezeOldOutputs(Operation):
    """The head's rows of classes from earlier experiences stay as they are.

    Args:
        after: how many experiences are learned freely first.
    """

    role = "knowledge retention"
    needs = frozenset({"boundaries", "classes"})
    state = ("old",)

    def __init__(self, after: int = 1) -> None:
        super().__init__()
        self.after = after
        self.old: list[int] = []

    def begin(self, experience: Experience, learner: Services) -> None:
        """Note the old classes; `learner` has not entered the new experience yet."""
        if experience.index >= self.after:
            self.old = sorted({label for members in learner.members for label in members})

    def gradient(self, step: Step, learner: Services) -> None:
        """Take the old rows out of the gradient."""
        if self.old:
            for parameter in (learner.head.weight, learner.head.bias):
                parameter.grad[self.old] = 0.0


stream = streams.split(datasets.digits(), experiences=5)
for operations in ([], [FreezeOldOutputs()], [FreezeOldOutputs(), Replay(size=32), Remember(capacity=200)]):
    model = models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[100, 100], head="fixed", seed=0)
    method = Method(*operations, name=" + ".join(operation.name for operation in operations) or "nothing")
    events = Trainer(method, optimizer={"name": "SGD", "lr": 0.1}, epochs=10).fit(model, stream)
    print(f"{method.name}: kept {metrics.compute(events)['average_accuracy']:.1%}")
