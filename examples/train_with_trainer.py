"""A method over a stream with our own trainer, and the accuracy matrix it leaves.

python examples/train_with_trainer.py
"""

from holdfast import Trainer, datasets, methods, metrics, models, streams

stream = streams.split(datasets.digits(), experiences=5)
model = models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[100, 100], seed=0)
trainer = Trainer(
    methods.der_plus_plus(capacity=200, size=32),
    optimizer={"name": "SGD", "lr": 0.1},
    epochs=10,
    batch_size=32,
    seed=0,
)
events = trainer.fit(model, stream)

print("accuracy in per cent; row: after learning an experience, column: tested on one")
for row in metrics.accuracy_matrix(events):
    print(" ".join(f"{100 * value:5.1f}" for value in row))

found = metrics.compute(events)
print(f"kept {found['average_accuracy']:.1%}, forgot {found['forgetting_first']:.1%}")
