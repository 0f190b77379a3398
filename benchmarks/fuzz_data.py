"""Random tables, archives and folders of images, as somebody's program may have written them, and what reads them."""

from __future__ import annotations

import contextlib
import gzip
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast import datasets, streams
from holdfast.core.errors import HoldfastError


def sentence(text: str) -> str:
    """`refused` where a text is a sentence."""
    return "refused" if len(text) > 15 and text.rstrip()[-1] in ".?!)" else f"WRONG no sentence: {text!r}"


def random_table(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A text file that somebody's program may have written, and what reads it."""
    choose = random.Random(seed)
    rows, columns = choose.choice((0, 1, 2, 5, 30, 40, 60, 60)), choose.choice((1, 2, 3, 4, 5, 6))
    mark = choose.choice(",;\t|;")
    decimal = "." if mark == "," else choose.choice((".", ","))
    kinds_of = [choose.choice(("number", "number", "whole", "word", "date")) for _ in range(columns - 1)] + ["whole"]
    if choose.random() < 0.15:
        kinds_of[choose.randrange(columns)] = choose.choice(("mixed", "empty"))
    odd = choose.random() < 0.1
    lines = [mark.join(choose.choice((f"c {n}", "", "é", "c1")) if odd else f"c{n}" for n in range(columns))]
    for _ in range(rows):
        values = [_cell(choose, kind, decimal) for kind in kinds_of]
        if choose.random() < 0.002:
            values = values[:-1]
        lines.append(mark.join(values))
    text = choose.choice(("\n", "\r\n")).join(lines) + choose.choice(("", "\n", "\n\n"))
    content = text.encode(choose.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1")), errors="replace")
    if choose.random() < 0.05:
        content = bytes(choose.randrange(256) for _ in range(200))
    path = folder / choose.choice(("t.csv", "t.txt", "ü ä.csv"))
    path.write_bytes(content)
    arguments: dict[str, Any] = {}
    if choose.random() < 0.5:
        arguments["target"] = choose.choice((0, 1, -1, 9, "c0", "c1", "nothing", ""))
    options = {
        "by": ("c0", "c1", "x"),
        "missing": ("mean", "drop", "refuse"),
        "kind": ("regression", "classification"),
        "ordered": (True, False),
        "test_fraction": (0.0, 0.5, 0.99),
        "standardise": (True, False, "first"),
        "period": ("month", "week"),
        "header": (True, False),
        "drop": (["c0"], ["c0", "c1"]),
        "delimiter": (mark, ",", ";", "ab", ""),
    }
    for name, values in options.items():
        if choose.random() < 0.1:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.csv(str(path), **arguments)), path


def _cell(choose: random.Random, kind: str, decimal: str) -> str:
    number = f"{choose.uniform(-1e3, 1e3):.3f}".replace(".", decimal)
    return {
        "number": number if choose.random() < 0.999 else choose.choice(("", "NA", "inf", "1e400", "-")),
        "word": choose.choice(("red", "green", "blue", '"a;b"')) if choose.random() < 0.997 else "",
        "date": choose.choice(("2024-01-03", "2024-02-28", "2023-12-31")) if choose.random() < 0.998 else "2024-13-01",
        "whole": str(choose.randrange(3)),
        "mixed": choose.choice((number, "x", "1")),
        "empty": "",
    }[kind]


def random_archive(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """An .npz file of arrays of any kind, and what reads it."""
    choose, draw = random.Random(seed), np.random.default_rng(seed)
    rows = choose.choice((0, 1, 2, 8, 40, 40, 40, 40))
    shape = choose.choice(((), (3,), (3,), (4, 4), (4, 4, 3), (1, 4, 4), (2, 3, 4, 5), (0,)))
    kind = choose.choice(("f4", "f4", "f8", "f2", "u1", "u1", "u2", "i8", "b1", "i1", "c8", "U3"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = (draw.random((rows, *shape)) * choose.choice((1, 255))).astype(kind)
    if x.dtype.kind == "f" and x.size and choose.random() < 0.2:
        x.flat[0] = choose.choice((np.nan, np.inf, -np.inf))
    y = choose.choice(
        (
            draw.integers(0, 3, rows),
            draw.random(rows),
            draw.integers(0, 2, (rows, 1)),
            np.array(["a", "b"])[draw.integers(0, 2, rows)],
            draw.random((rows, 2)).astype("f4"),
            np.full(rows, np.nan),
            draw.integers(0, 3, rows + choose.choice((0, 1))),
            draw.integers(0, 3, rows).astype("u8"),
        )
    )
    path = folder / "a.npz"
    names = choose.choice((("x", "y"), ("x", "y"), ("x_train", "y_train"), ("images", "labels"), ("p", "q")))
    arrays = {names[0]: x, names[1]: y}
    if choose.random() < 0.3:
        arrays["split"] = draw.integers(0, 2, rows)
    if choose.random() < 0.3:
        arrays["group"] = choose.choice((draw.integers(0, 2, rows), np.array(["u", "v"])[draw.integers(0, 2, rows)]))
    np.savez(path, **arrays)
    if choose.random() < 0.05:
        path.write_bytes(path.read_bytes()[:-30])
    arguments: dict[str, Any] = {}
    options = {
        "kind": ("regression", "classification"),
        "by": ("group",),
        "layout": ("hwc", "tokens", "auto"),
        "missing": ("mean", "drop"),
        "normalise": (True,),
        "crop": (1, 3),
        "flip": (True,),
        "scale": (1.0, 255.0),
        "test_fraction": (0.0, 0.5),
    }
    for name, values in options.items():
        if choose.random() < 0.2:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.npz(str(path), **arguments)), path


def random_images(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A folder of image files, some of them none, and what reads it."""
    from PIL import Image

    choose, draw = random.Random(seed), np.random.default_rng(seed)
    root = folder / "images"
    root.mkdir()
    sizes = [(8, 8)] if choose.random() < 0.7 else [(8, 8), (5, 9), (1, 1)]
    for label in choose.sample(("cat", "dog", "a b", "über", ".hidden", "train", "test"), choose.choice((0, 1, 2, 3))):
        inside = root / label / choose.choice(("", "", "deep", "train"))
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(choose.choice((0, 1, 2, 6))):
            mode, ending = choose.choice((("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("RGB", "jpg"), ("1", "bmp")))
            size = choose.choice(sizes)
            pixels = draw.integers(0, 256, (size[1], size[0], 4)).astype("u1")
            Image.fromarray(pixels).convert(mode).save(inside / f"{number}.{ending}")
        if choose.random() < 0.1:
            (inside / "broken.png").write_bytes(choose.choice((b"", b"no image", b"\x89PNG\r\n\x1a\n")))
    arguments: dict[str, Any] = {}
    options = {"size": (4, 8, 0, -1), "normalise": (True,), "crop": (1,), "flip": (True,), "test_fraction": (0.0, 0.5)}
    for name, values in options.items():
        if choose.random() < 0.3:
            arguments[name] = choose.choice(values)
    return (lambda: datasets.image_folder(str(root), **arguments)), root


def try_data(make: Callable[[int, Path], tuple[Callable[[], Any], Path]], seed: int) -> str:
    """Read random data, and train on what was read: `ran`, `refused`, or what is wrong."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read, _ = make(seed, Path(name))
        try:
            data = read()
        except HoldfastError as error:
            return sentence(str(error))
        for part in filter(None, (data.train, data.test)):
            batch = part.gather(torch.arange(len(part)))
            inputs = batch.inputs if data.prepare is None else data.prepare(batch.inputs)
            targets = batch.targets
            if not torch.isfinite(inputs.float()).all() or not torch.isfinite(targets.float()).all():
                return "WRONG inputs or targets that are not finite"
        if data.train.gather(torch.tensor([0])).inputs.is_floating_point() or data.prepare is not None:
            return _trained(data)
        return "ran"  # tokens, which a perceptron does not take


def _trained(data: Any) -> str:
    from holdfast import Trainer, methods, models

    try:
        if data.groups is not None:
            stream = streams.grouped(data)
        elif data.classes:
            stream = streams.split(data, experiences=1)
        else:
            stream = streams.data_incremental(data, experiences=1)
        model = models.mlp(input_shape=stream.input_shape, classes=stream.outputs, hidden=[4], seed=0)
        loss = None if data.classes else torch.nn.functional.mse_loss
        optimizer = {"name": "SGD", "lr": 1e-4}
        events = Trainer(methods.er(capacity=8), criterion=loss, optimizer=optimizer).fit(model, stream)
    except HoldfastError as error:
        return "diverged" if type(error).__name__ == "Diverged" else sentence(str(error))
    wrong = [event for event in events if event["event"] == "evaluate" and not np.isfinite(event["loss"] or 0.0)]
    return f"WRONG a loss of {wrong[0]['loss']}" if wrong else "ran"


# Dirt ------------------------------------------------------------------------------------------------------


CELLS = (
    *(b'"a\nb"', b'"open', b"1.234,56", b"1,234.5", b"12%", b"(3)", b"1e-400", b"9" * 40, b"nan", b"NULL", b"n/a"),
    *(b"true", b"2024-01-03T10:00:00+02:00", b"03/02/2024", b"\x00", b"\xef\xbb\xbf", b" 1 ", b"=1+1", b"1 000"),
    *("١٢".encode(), b"-", b"+1", b"1_000", b"0x10", b"\xff"),
)


def dirty_table(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A table as `random_table` makes it, into which one or two more things went wrong."""
    read, path = random_table(seed, folder)
    choose = random.Random(seed + 10**6)
    content = path.read_bytes()
    for _ in range(choose.choice((1, 1, 2))):
        content = dirtied(choose, content)
    path.write_bytes(content)
    return read, path


def dirtied(choose: random.Random, content: bytes) -> bytes:
    """The text of a table with one thing in it that few expect."""
    lines = content.split(b"\n")
    row = choose.randrange(len(lines))
    before, line, after = lines[:row], lines[row], lines[row + 1 :]
    cells = line.split(b",")
    cells[choose.randrange(len(cells))] = choose.choice(CELLS)
    tail, note = choose.choice((b",", b",1", b"\r", b";")), choose.choice((b"# note", b"", b"sep=,", lines[0]))
    repeated = [lines[0], *[lines[-2] if len(lines) > 2 else b""] * 30]
    dirt = (
        *(b"\n".join([*before, b",".join(cells), *after]), b"\n".join([*before, line + tail, *after])),
        *(b"\n".join([*before, note, line, *after]), content.replace(b"c1", b"c0"), b"\n".join(repeated)),
        content.replace(b"\n", choose.choice((b"\r", b"\n\n", b"\r\n"))),
        *(content[: -choose.randrange(1, 20)], content + b"x" * choose.choice((10, 200_000)), gzip.compress(content)),
    )
    return choose.choice(dirt)


def dirty_archive(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """An archive of the usual arrays, of which one is of a kind that few expect."""
    choose, draw = random.Random(seed), np.random.default_rng(seed)
    rows = choose.choice((6, 20))
    arrays: dict[str, Any] = {"x": draw.random((rows, 3)).astype("f4"), "y": draw.integers(0, 3, rows)}
    x, y = arrays["x"], arrays["y"]
    odd: dict[str, tuple[Callable[[], Any], ...]] = {
        "x": (
            lambda: x.astype(object), lambda: x.astype(">f4"), lambda: np.asfortranarray(x), lambda: np.array(1.0),
            lambda: x.astype("M8[s]"), lambda: x.view([("a", "f4"), ("b", "f4"), ("c", "f4")]), lambda: x[:, :0],
            lambda: np.full_like(x, np.nan), lambda: x * 1e38, lambda: np.zeros((rows, 4, 4, 7), "u1"), lambda: x[:1],
            lambda: np.where(x > 0.9, np.nan, x), lambda: x.astype("f2") * 7e4, lambda: x.astype("S3"), lambda: x[0],
            lambda: np.zeros_like(x), lambda: (x * 2**62).astype("u8"), lambda: x.astype("longdouble"),
        ),
        "y": (
            lambda: np.eye(3)[y], lambda: y - 5, lambda: y * 10**12, lambda: y.astype("f8"), lambda: y + 0.5,
            lambda: np.where(y > 1, np.nan, y), lambda: y.astype(object), lambda: y.astype("M8[D]"),
            lambda: y.astype("?"),
            lambda: y[:, None], lambda: y[:-1], lambda: np.array(["", " ", "é"])[y], lambda: np.zeros(rows, "i8"),
            lambda: np.arange(rows), lambda: np.array(2), lambda: y.astype("c16"), lambda: np.full(rows, np.inf),
        ),
        "group": (lambda: y[:-1], lambda: y + 0.5, lambda: np.full(rows, np.nan), lambda: np.array(["b", "", "a"])[y],
                  lambda: y.astype("M8[D]"), lambda: np.arange(rows), lambda: np.eye(3)[y], lambda: y.astype(object)),
        "split": (lambda: np.array(["train", "test", "x"])[y], lambda: y, lambda: np.zeros(rows), lambda: y * np.nan),
        "a/b": (lambda: y,),
    }  # fmt: skip
    for name in choose.sample(sorted(odd), choose.choice((1, 1, 2))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays[name] = choose.choice(odd[name])()
    if choose.random() < 0.1:
        arrays.pop(choose.choice(("x", "y")))
    path = folder / choose.choice(("a.npz", "a.npz", "ü.npz"))
    np.savez(path, **arrays)
    if choose.random() < 0.1:
        path.write_bytes(choose.choice((b"", b"PK", path.read_bytes()[:100], b"\x93NUMPY" + bytes(50))))
    options = {"by": "group", "missing": "mean", "kind": "regression", "test_fraction": 0.3, "normalise": True}
    arguments = {name: value for name, value in options.items() if choose.random() < 0.25}
    return (lambda: datasets.npz(str(path), **arguments)), path


def dirty_images(seed: int, folder: Path) -> tuple[Callable[[], Any], Path]:
    """A folder of two classes of images, with files in it that few expect."""
    from PIL import Image

    choose, draw = random.Random(seed), np.random.default_rng(seed)
    root = folder / "images"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(4):
            pixels = Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype("u1"))
            pixels.save(root / label / f"{number}.png")
    inside = root / choose.choice(("cat", "dog"))
    picture = Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype("u1"))
    deep = Image.fromarray(draw.integers(0, 65536, (8, 8)).astype("u2"))
    dirt: tuple[Callable[[], Any], ...] = (
        lambda: deep.save(inside / "deep.png"), lambda: picture.convert("P").save(inside / "palette.png"),
        lambda: picture.save(inside / "many.gif", save_all=True, append_images=[picture, picture]),
        lambda: picture.convert("CMYK").save(inside / "cmyk.jpg"), lambda: picture.save(inside / "UPPER.PNG"),
        lambda: picture.convert("LA").save(inside / "la.png"), lambda: picture.save(inside / "w.webp"),
        lambda: deep.convert("I").save(inside / "i.tif"), lambda: deep.convert("F").save(inside / "f.tif"),
        lambda: (inside / "text.png").write_text("hello"), lambda: (inside / ".DS_Store").write_bytes(b"x"),
        lambda: (inside / "Thumbs.db").write_bytes(b"x"), lambda: (inside / "folder.png").mkdir(),
        lambda: (inside / "gone.png").symlink_to(inside / "nowhere.png"), lambda: (inside / "round").symlink_to(root),
        lambda: (inside / "cut.png").write_bytes((inside / "1.png").read_bytes()[:60]),
        lambda: picture.resize((1, 3000)).save(inside / "thin.png"), lambda: (root / "empty").mkdir(),
        lambda: picture.save(root / "outside.png"), lambda: picture.save(inside / f"{'n' * 200}.png"),
        lambda: (inside / "0.png").rename(root / "0.png"), lambda: (root / "labels.csv").write_text("a,b"),
        lambda: (inside / "1.png").write_bytes(b""), lambda: [path.unlink() for path in inside.iterdir()],
        lambda: (root / "cat").rename(root / "train"), lambda: (inside / "zero.png").touch(),
    )  # fmt: skip
    for spoil in choose.sample(dirt, choose.choice((1, 2, 3))):
        with contextlib.suppress(OSError):  # an earlier one took the file away
            spoil()
    options = {"size": 8, "normalise": True, "flip": True, "test_fraction": 0.3}
    arguments = {name: value for name, value in options.items() if choose.random() < 0.5}
    return (lambda: datasets.image_folder(str(root), **arguments)), root
