"""A stream that never says when something new begins: a boundary every so many steps stands in for it.

python examples/unlabelled_stream.py
"""

from torch import Generator, nn, optim, randperm

from holdfast import Continual, Every, Method, Stream, datasets, methods, models, streams
from holdfast.core.boundary import Boundary
from holdfast.core.errors import NeedError

stream = streams.rotated(datasets.digits(), angles=[0, 45, 90], seed=0)


def train(method: Method, boundary: Boundary | None) -> Continual:
    """One pass over everything in order; the loop is not told where an experience ends."""
    model = models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[100], head="fixed", seed=0)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    cl = Continual(model, method, optimizer, boundary=boundary, prepare=stream.prepare)
    generator = Generator().manual_seed(0)
    model.train()
    for experience in stream:
        for _ in range(5):
            for batch in experience.train.batches(randperm(len(experience.train), generator=generator), 32):
                loss = nn.functional.cross_entropy(cl(batch.inputs), batch.targets)
                optimizer.zero_grad()
                cl.backward(loss, batch.targets, inputs=batch.inputs)
                optimizer.step()
    return cl


def accuracy(cl: Continual, stream: Stream) -> float:
    """On the test data of every experience."""
    batches = [batch for experience in stream for batch in experience.test]
    right = sum(int((cl.predict(batch.inputs).argmax(1) == batch.targets).sum()) for batch in batches)
    return right / sum(len(batch.targets) for batch in batches)


try:
    Continual(nn.Linear(64, 10), methods.joint(), boundary=Every(steps=100))
except NeedError as error:
    print(f"refused: {error}")

for method, boundary in (
    (methods.finetune(), None),
    (methods.ewc_online(strength=50.0), Every(steps=75, window=512)),
    (methods.er(capacity=200), None),
):
    cl = train(method, boundary)
    print(f"{method.name}, boundary {boundary}: {accuracy(cl, stream):.1%} over all angles")
