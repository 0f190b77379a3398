"""Eight Gaussians that wander, as a picture: by the time functions, or by the data set that is moved on step by step.

python examples/toy8_picture.py [td|tdds] [FILE]
"""

import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from holdfast.sources.toys import TimeDependentDataset, generate_toy8, td_arrays, tdds_arrays

kind = sys.argv[1] if len(sys.argv) > 1 else "td"
path = sys.argv[2] if len(sys.argv) > 2 else "toy8.png"
steps, dt = 10, 0.3

x, y = generate_toy8("all", npoints=512, seed=0)
if kind == "td":
    xs, ys = td_arrays(x, y, time=[dt * step for step in range(steps)])
else:
    xs, ys = tdds_arrays(TimeDependentDataset(x, y, dt=dt), steps)

figure = Figure(figsize=(12, 5), layout="constrained")
FigureCanvasAgg(figure)
for step, axes in enumerate(figure.subplots(2, steps // 2, sharex=True, sharey=True).flat):
    axes.scatter(*xs[step].T, c=ys[step].argmax(1), s=3, cmap="tab10", vmin=0, vmax=9)
    axes.set_title(f"time {step * dt:.1f}", fontsize=9)
    axes.set_aspect("equal")
figure.savefig(path, dpi=110)
print(f"{kind}: {tuple(xs.shape)} points, {tuple(ys.shape)} labels, drawn in {path}")
