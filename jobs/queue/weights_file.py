"""Check weights without torch: the tensor names of a file, and whether the official file can be had."""

import http.client
import json
import pickletools
import struct
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import IO

from trainer.errors import WeightsError
from trainer.model.names import IMAGENET_FILE, IMAGENET_URL

STEMS = ("_conv_stem.weight", "features.0.0.weight")  # efficientnet_pytorch's name of the first layer, torchvision's
PICKLES_BEFORE_1_6 = 4  # a magic number, a version, the machine's sizes, the state dict
HEADER_BYTES_MOST = 100_000_000  # as safetensors itself allows
ANSWER_SECONDS = 5.0


def refuse_other_network(path: Path) -> None:
    """Refuse a file whose tensor names are not those of an EfficientNet; the trainer checks the rest.

    Raises:
        WeightsError: The file belongs to another network, or is damaged.
    """
    try:
        names = _safetensors_names(path) if path.suffix == ".safetensors" else _torch_names(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is damaged or not a weights file; give weights of EfficientNet-B0") from error
    if not any(stem in names for stem in STEMS):
        example = next((name for name in sorted(names) if name.endswith(".weight")), "no layer weights")
        raise WeightsError(
            f"{path} belongs to another network: it has {example} and no {STEMS[0]}; give weights of EfficientNet-B0"
        )


def refuse_unavailable_imagenet(storage: Path, url: str = IMAGENET_URL) -> None:
    """Refuse `--weights imagenet` if the official file is neither in the storage nor at its address.

    Raises:
        WeightsError: The run could only fail.
    """
    if (storage / "weights" / IMAGENET_FILE).exists():
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code}"
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise WeightsError(
        f"{IMAGENET_FILE} is not in {storage / 'weights'} and cannot be downloaded ({reason}); download it from {url} "
        "to that folder on a machine with internet access, or use --weights FILE or --weights none"
    )


def _torch_names(path: Path) -> set[str]:
    """Return the strings in a file of `torch.save`, read opcode by opcode, so that nothing in it is called."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:  # the format before torch 1.6, which the official file has
            return set().union(*(_strings(file) for _ in range(PICKLES_BEFORE_1_6)))
    with zipfile.ZipFile(path) as archive:
        pickle = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if pickle is None:
            raise ValueError("the archive has no data.pkl")
        return _strings(archive.open(pickle))


def _strings(file: IO[bytes]) -> set[str]:
    """Return the strings of the pickle at the file's position, and leave the position after it."""
    return {argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str)}


def _safetensors_names(path: Path) -> set[str]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > HEADER_BYTES_MOST:
            raise ValueError("its header is too long")
        return set(json.loads(file.read(length)))
