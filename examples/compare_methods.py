"""Several methods on the same stream, side by side.

python examples/compare_methods.py
"""

from holdfast import Trainer, datasets, methods, metrics, models, streams

stream = streams.split(datasets.digits(), experiences=5)
contestants = [
    methods.finetune(),
    methods.ewc(strength=5.0),
    methods.lwf(),
    methods.agem(capacity=200),
    methods.er(capacity=200),
    methods.der_plus_plus(capacity=200),
    methods.joint(),
]
columns = ["average_accuracy", "plasticity", "forgetting_first", "task_aware_average_accuracy"]

print(f"{'method':14}" + "".join(f"{column:>30}" for column in columns))
for method in contestants:
    model = models.mlp(input_shape=stream.input_shape, classes=stream.classes, hidden=[100, 100], seed=0)
    events = Trainer(method, optimizer={"name": "SGD", "lr": 0.05}, epochs=10).fit(model, stream)
    found = metrics.compute(events)
    cells = ["-" if found[column] is None else f"{found[column]:.1%}" for column in columns]
    print(f"{method.name:14}" + "".join(f"{cell:>30}" for cell in cells))
