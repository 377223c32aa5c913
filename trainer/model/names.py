"""File names of a published model and stages of the network. Imports neither torch nor ray: `jobs` uses it too."""

from pathlib import Path

MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.json"
MANIFEST_FILE = "manifest.json"
CALIBRATION_FILE = "calibration.json"

# The file that efficientnet_pytorch 0.7.1 downloads (utils.py, url_map). By torch.hub's convention its name ends
# in the first digits of its sha256.
IMAGENET_FILE = "efficientnet-b0-355c32eb.pth"
IMAGENET_URL = f"https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/{IMAGENET_FILE}"

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)  # of EfficientNet-B0; Tan & Le 2019, table 1, column "layers", rows 2 to 8


def published_model(*places: Path) -> Path | None:
    """Return the first folder with a published model among `places` and the `best/` in each, None if there is none."""
    candidates = (folder for place in places for folder in (place, place / "best"))
    return next((folder.absolute() for folder in candidates if (folder / HEAD_FILE).is_file()), None)
