"""Five methods in one plain PyTorch loop on Split MNIST, online: one pass over five pairs of digits.

    HOLDFAST_DATA=<folder with mnist/> python benchmarks/five_methods.py [seeds] [row ...]
    python benchmarks/five_methods.py 10 --json benchmarks/results/five_methods.json
    python benchmarks/five_methods.py --page docs/coming_from_synapse.md

The protocol of Buzzega et al. 2020: MLP 2x100, batch 10, plain SGD, pixels in [0, 1], one head of 10. `--page` writes
the committed figures into a page; every method stands beside fine-tuning with its own learning rate and seeds.
"""

import argparse
import json
import math
import re
import statistics
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "five_methods.json"
ROWS = {
    "finetune": (0.03, "finetune", {}, "19.60 / 94.94"),
    "finetune_fast": (0.1, "finetune", {}, ""),
    "finetune_slow": (0.01, "finetune", {}, ""),
    "er": (0.01, "er", {"capacity": 200, "size": 10}, "80.43 / 97.86"),
    "der": (0.03, "der", {"capacity": 200, "size": 10, "alpha": 0.2}, "84.55 / 98.80"),
    "der_plus_plus": (
        0.03,
        "der_plus_plus",
        {"capacity": 200, "size": 128, "alpha": 0.2, "beta": 1.0},
        "85.61 / 98.76",
    ),
    "agem": (0.1, "agem", {"capacity": 200, "size": 128}, ""),
    "si": (0.03, "si", {"strength": 1.0, "damping": 0.1}, ""),
}
CONTROLS = {0.03: "finetune", 0.1: "finetune_fast", 0.01: "finetune_slow"}


def run(row: str, seed: int) -> tuple[float, float]:
    """Class-incremental and task-incremental accuracy in per cent, averaged over the five pairs."""
    import torch
    from torch import nn

    from holdfast import Continual, methods

    lr, name, arguments, _ = ROWS[row]
    X, Y, TX, TY = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    for layer in model[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    cl = Continual(model, getattr(methods, name)(**arguments), optimizer, seed=seed)
    for first in range(0, 10, 2):
        rows = (first // 2 == Y // 2).nonzero().flatten()
        cl.begin()
        for part in rows[torch.randperm(len(rows))].split(10):
            loss = nn.functional.cross_entropy(model(X[part]), Y[part])
            optimizer.zero_grad()
            cl.backward(loss, Y[part], inputs=X[part])  # was: loss.backward()
            optimizer.step()
        cl.end()
    outputs, groups = cl.predict(TX), [task == TY // 2 for task in range(5)]
    right = [float((outputs[group].argmax(1) == TY[group]).float().mean()) for group in groups]
    pairs = [outputs[g][:, 2 * t : 2 * t + 2].argmax(1) + 2 * t == TY[g] for t, g in enumerate(groups)]
    return 100 * statistics.mean(right), 100 * statistics.mean(float(pair.float().mean()) for pair in pairs)


def digits() -> list:
    """Training inputs and targets, test inputs and targets; read once."""
    import torch

    from holdfast import datasets

    if not hasattr(digits, "found"):
        mnist = datasets.mnist()
        parts = [part.gather(torch.arange(len(part))) for part in (mnist.train, mnist.test)]
        digits.found = [value for part in parts for value in (part.inputs.flatten(1) / 255, part.targets)]
    return digits.found


def measure(names: list[str], seeds: int, file: str | None) -> None:
    """Run, print a line a row, and keep the figures."""
    import torch

    import holdfast

    torch.set_num_threads(1)
    runs = {}
    for row in names:
        runs[row] = [[round(value, 4) for value in run(row, seed)] for seed in range(seeds)]
        columns = list(zip(*runs[row]))
        spread = [statistics.stdev(column) if seeds > 1 else 0.0 for column in columns]
        means = [statistics.mean(column) for column in columns]
        print(
            f"{row:14} class-IL {means[0]:5.2f} ({spread[0]:.2f})   task-IL {means[1]:5.2f} ({spread[1]:.2f})",
            flush=True,
        )
        if file:
            result = {
                "command": f"python benchmarks/five_methods.py {seeds} --json benchmarks/results/five_methods.json",
                "seeds": list(range(seeds)),
                "versions": {"holdfast": holdfast.__version__, "torch": torch.__version__},
                "runs": runs,
            }
            Path(file).write_text(json.dumps(result, indent=1) + "\n")


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def page(text: str) -> str:
    """`text` with the table of committed figures between its markers."""
    result = json.loads(RESULTS.read_text())
    lines = [
        f"Mean accuracy in per cent over {len(result['seeds'])} seeds with its standard error, and how far above",
        "fine-tuning with the same learning rate and seeds:",
        "",
        "| method | class-incremental | above fine-tuning | task-incremental | above fine-tuning | published |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row, runs in result["runs"].items():
        lr, name, arguments, published = ROWS[row]
        given = [f"lr {lr}", *(f"{key} {value}" for key, value in arguments.items() if key != "capacity")]
        cells = [f"`{name}`, {', '.join(given)}"]
        for own, control in zip(zip(*runs), zip(*result["runs"][CONTROLS[lr]])):
            above = mean_and_error([a - b for a, b in zip(own, control)])
            cells.append("{:.2f} ± {:.2f}".format(*mean_and_error(own)))
            cells.append("" if name == "finetune" else "{:+.2f} ± {:.2f}".format(*above))
        lines.append("| " + " | ".join([*cells, published]) + " |")
    lines += ["", f"The command is `{result['command']}`, with `HOLDFAST_DATA` set to a folder that has `mnist/`."]
    marks = r"(<!-- five methods: generated -->\n).*?(\n<!-- five methods: end -->)"
    return re.sub(marks, lambda found: found[1] + "\n".join(lines) + found[2], text, flags=re.DOTALL)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=1)
    parser.add_argument("row", nargs="*", default=list(ROWS))
    parser.add_argument("--json", help="keep the figures in this file")
    parser.add_argument("--page", help="write the committed figures into this page, and run nothing")
    arguments = parser.parse_args()
    if arguments.page:
        path = Path(arguments.page)
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        measure(arguments.row, arguments.seeds, arguments.json)


if __name__ == "__main__":
    main()
