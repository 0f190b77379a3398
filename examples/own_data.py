"""Your own arrays as a stream: uint8 images of uneven classes, with a part held out for validation.

python examples/own_data.py
"""

import numpy as np

from holdfast import Trainer, datasets, methods, metrics, models, streams

rng = np.random.default_rng(0)
labels = rng.choice(["ant", "bee", "cat", "dog"], size=1200, p=[0.4, 0.3, 0.2, 0.1])
patterns = {name: rng.integers(0, 256, size=(12, 12)) for name in ("ant", "bee", "cat", "dog")}
images = np.stack([patterns[name] + rng.normal(0, 60, size=(12, 12)) for name in labels]).clip(0, 255).astype(np.uint8)

data = datasets.arrays(images, labels, test_fraction=0.25, name="animals")
print(
    f"{data.name}: {len(data.train)} training images of shape {data.input_shape}, classes {', '.join(data.class_names)}"
)

stream = streams.split(data, sizes=[1, 2, 1], class_order="random", validation=0.1, seed=1)
for experience in stream:
    names = [stream.class_names[label] for label in experience.classes]
    print(f"experience {experience.index}: {', '.join(names)}, {len(experience.train)} to learn")

model = models.cnn(input_shape=stream.input_shape, classes=stream.classes, seed=0)
trainer = Trainer(
    methods.er(capacity=60, size=16), optimizer={"name": "Adam", "lr": 0.003}, batch_size=16, epochs=5, evaluate="both"
)
events = trainer.fit(model, stream)
for split in ("validation", "test"):
    print(f"{split} accuracy {metrics.compute(events, split)['average_accuracy']:.1%}")
