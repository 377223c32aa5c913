"""Take the pictures of the user guide: `make pictures`. They show runs on shapes that are drawn here.

A picture has few colors, so that it is smaller than 100 kB.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

from tests.browser import CHROMIUM, RENDERED, Browser, open_browser
from tests.stack import eventually

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
NIGHTSHIFT = (sys.executable, "-P", "-m", "jobs")
WIDTH, HEIGHT = 1100, 760  # CSS pixels
COLORS = 64
MARGIN = 24  # pixels above a heading
SHAPES, SIDE = 400, 48  # images, and the pixels of a side
NOISE, MISLABELLED = 40.0, 0.05  # standard deviation in gray levels; share of the images, so that there are errors
QUICK = ("--image-size", "32")
FINE_TUNING = (*QUICK, "--weights", "none", "--freeze", "none", "--lr", "2e-3", "--batch-size", "8")
BACKBONE = "backbone.network."  # before the names of the backbone's tensors in a published model


def main() -> None:
    """Draw images, run a training, an evaluation and a search of them, and take the pictures."""
    if CHROMIUM is None:
        sys.exit("there is no Chromium on this machine; install the package chromium")
    with tempfile.TemporaryDirectory(prefix="guide-") as place:
        folder = Path(place)
        draw_shapes(folder / "photos")
        environment = {**os.environ, "NIGHTSHIFT_STORAGE": str(folder / "storage"), "NIGHTSHIFT_USER": "mira"}

        def nightshift(*words: str) -> str:
            done = subprocess.run(
                (*NIGHTSHIFT, *words), env=environment, cwd=folder, check=True, stdout=subprocess.PIPE
            )
            return done.stdout.decode().split("\n", 1)[0]

        with page(environment) as address, open_browser(folder / "browser") as browser:
            nightshift("shards", "pack", "photos", "shards", "--split", "60/20/20")
            options = ("--name", "first", "--tag", "shapes", "--epochs", "10")
            first = nightshift("train", "shards", *options, *FINE_TUNING, "--wait")
            evaluation = nightshift("evaluate", "first", "shards", "--positive", "ring", "--wait")
            save_backbone(
                folder / "storage" / "runs" / first / "best" / "model.safetensors", folder / "shapes.safetensors"
            )
            options = ("--name", "night", "--trials", "24", "--epochs", "8", "--weights", "shapes.safetensors")
            search = nightshift("search", "shards", *options, *QUICK, "--wait")
            nightshift("train", "shards", "--name", "longer", "--tag", "shapes", "--epochs", "60", *FINE_TUNING)
            nightshift("train", "shards", "--name", "next", "--after", "longer", *FINE_TUNING)
            take(browser, address, "", "runs")
            take(browser, address, f"runs/{search}", "search", heading="Charts")
            take(browser, address, f"runs/{evaluation}/report", "report")


def draw_shapes(folder: Path) -> None:
    """Write discs and rings with noise, as `disc/N.png` and `ring/N.png`."""
    random = np.random.default_rng(0)
    for number in range(SHAPES):
        name = ("disc", "ring")[number % 2]
        left, top, size = random.integers(2, 14), random.integers(2, 14), random.integers(18, 30)
        is_filled = (name == "disc") != (random.random() < MISLABELLED)
        image = Image.new("L", (SIDE, SIDE), 60)
        box = [left, top, left + size, top + size]
        ImageDraw.Draw(image).ellipse(box, fill=180 if is_filled else None, outline=180, width=4)
        noisy = np.asarray(image) + random.normal(0, NOISE, (SIDE, SIDE))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"shape-{number:03d}.png")


@contextlib.contextmanager
def page(environment: dict[str, str]) -> Iterator[str]:
    """Run `nightshift up --ui` and yield the address of the page, with its token."""
    order = [*NIGHTSHIFT, "up", "--ui", "--ui-port", "0"]
    with subprocess.Popen(order, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def save_backbone(model: Path, file: Path) -> None:
    """Write the backbone of a published model as weights of another training."""
    tensors = {name.removeprefix(BACKBONE): value for name, value in load_file(model).items() if BACKBONE in name}
    save_file(tensors, file)


def take(browser: Browser, address: str, path: str, name: str, *, heading: str | None = None) -> None:
    """Write the picture of the upper part of a page, or of the part below a heading."""
    base, _, token = address.partition("?")
    browser.size(WIDTH, HEIGHT)
    browser.call("Emulation.setScrollbarsHidden", hidden=True)
    browser.open(f"{base}{path}?{token}")
    shown = f"location.pathname === '/{path}' && {RENDERED} && !!document.querySelector('main')"
    assert eventually(lambda: browser.evaluate(shown))
    PICTURES.mkdir(exist_ok=True)
    file = PICTURES / f"{name}.png"
    browser.picture(file, whole=heading is not None)
    find = f"[...document.querySelectorAll('h2')].find(one => one.textContent === {json.dumps(heading)})"
    top = int(browser.evaluate(f"{find}.getBoundingClientRect().top")) - MARGIN if heading else 0
    image = Image.open(file).convert("RGB")
    image = image.crop((0, top, image.width, min(top + HEIGHT, image.height)))
    image.quantize(COLORS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
