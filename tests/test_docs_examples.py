"""The files of docs/examples do what they say."""

import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cluster.settings import Settings
from data_shards.pack.encode import encoded_like_packed
from data_shards.pack.options import EncodeOptions
from data_shards.pixels import decode_square
from jobs.queue.schedules import schedules
from tests.conftest import Say
from tests.datasets import image_folder

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"
README = DOCS.parent / "README.md"
LARGEST_PICTURE = 100_000  # bytes


@pytest.fixture(scope="module")
def predict_onnx() -> ModuleType:
    spec = importlib.util.spec_from_file_location("predict_onnx", EXAMPLES / "predict_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_examples_names_each_file() -> None:
    linked = set(re.findall(r"\(examples/([^)]+)\)", (DOCS / "examples.md").read_text()))

    assert linked == {file.name for file in EXAMPLES.iterdir() if not file.name.startswith((".", "__"))}


def test_the_search_of_the_config_file_is_accepted(say: Say, shards: str) -> None:
    code, out, _ = say("search", shards, "--weights", "none", "--config", str(EXAMPLES / "search.yaml"), "--dry-run")

    spec = json.loads(out)
    assert code == 0
    assert (spec["trials"], spec["epochs"], spec["best_by"], spec["repeats"], spec["refit"]) == (
        60,
        30,
        "auroc",
        3,
        True,
    )
    assert spec["space"]["lr"]["low"] == 1e-5
    assert spec["space"]["head_width"] == [128, 256, 512, 1024]


def test_the_schedule_is_added(settings: Settings, shards: str) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NIGHTSHIFT_STORAGE": str(settings.storage),
        "NIGHTSHIFT_REDIS_URL": str(settings.redis_url),
    }

    done = subprocess.run(
        [EXAMPLES / "schedule.sh", shards, "--weights", "none"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    (found,) = schedules(settings)
    assert (found.name, found.cron, found.request.window) == ("nightly", "0 20 * * 1-5", "20:00-07:00")
    assert "nightly" in done.stdout


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(300, 401, 3), (777, 520, 3), (90, 131, 3), (301, 300)], ids=str)
@pytest.mark.parametrize(("size", "color"), [(224, "RGB"), (96, "RGB"), (64, "L")])
def test_another_program_prepares_images_as_predict_does(
    predict_onnx: ModuleType, form: str, shape: tuple[int, ...], size: int, color: str
) -> None:
    coarse = np.random.default_rng(1).integers(0, 256, (9, 9, *shape[2:]), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC).save(file, format=form)
    packed = EncodeOptions()
    options = {"image_size": packed.image_size, "encoding": packed.encoding, "quality": packed.quality}

    found = predict_onnx.pixels(io.BytesIO(file.getvalue()), size, color, options)

    expected = decode_square(encoded_like_packed(file.getvalue(), packed), size=size, color=color)
    assert found.shape == (1, 3, size, size)
    assert np.abs(found[0].astype(int) - expected).max() <= 2  # a gray JPEG is stored as gray there, as color here


@pytest.mark.slow
def test_the_first_commands_of_readme_and_guide_run_and_then_the_notebook(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", {"covid": 24, "normal": 24})
    image_folder(tmp_path / "new_photos", {".": 3}, mode="RGB")
    typed = dict.fromkeys(
        (*commands_of(README, "Use it"), *commands_of(DOCS / "getting_started.md", "Your own images"))
    )
    command_that_needs_no_internet(tmp_path / "bin" / "nightshift")
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    checks = "\nprint(ended['state'], len(nightshift.trials(search)), model.classes, flush=True)"
    (tmp_path / "notebook.py").write_text(source + checks)
    script = ["trap 'kill $!; wait $!' EXIT", *typed, f"{shlex.quote(sys.executable)} -P notebook.py"]

    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(script)],
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "NIGHTSHIFT_STORAGE": str(tmp_path / "storage"),
            "PYTHONPATH": str(DOCS.parent),
            "WEIGHTS": "none",
        },
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in typed] == ["up", "shards", "train", "evaluate", "predict", "show"]
    assert len(re.findall(r"image-00\d\.png", done.stdout)) == 3
    assert done.stdout.splitlines()[-1] == "succeeded 4 ('covid', 'normal')"


def commands_of(file: Path, section: str) -> list[str]:
    """The commands of the first block of a section, without comments."""
    block = re.search(rf"^## {section}$.*?^```\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    return [line.partition(" #")[0].strip() for line in block[1].splitlines()]


def command_that_needs_no_internet(file: Path) -> None:
    """Write the command `nightshift` with random weights in place of those that `train` downloads."""
    installed = Path(sys.executable).with_name("nightshift")
    file.parent.mkdir()
    file.write_text(f"""#!/bin/sh
[ "$1" = train ] && set -- "$@" --weights none
exec {shlex.quote(str(installed))} "$@"
""")
    file.chmod(0o755)


def test_the_guide_shows_each_picture_and_all_are_small() -> None:
    shown = {name for file in DOCS.glob("*.md") for name in re.findall(r"\]\(pictures/([^)]+)\)", file.read_text())}
    stored = {file.name: file.stat().st_size for file in (DOCS / "pictures").iterdir()}

    assert shown == stored.keys()
    assert {name for name, size in stored.items() if size > LARGEST_PICTURE} == set()
