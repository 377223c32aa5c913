"""Downloads from Google Drive and Kaggle, through the packages gdown and kagglehub."""

import contextlib
import logging
import shutil
import sys
from pathlib import Path

from data_shards.download.transfer import TransferOptions, require_allowed_size
from data_shards.errors import DownloadFailed

DRIVE_URL = "https://drive.google.com/uc?id={}"
TIMEOUT_SECONDS = 60.0
RETRIES = 4


def download_from_drive(file_id: str, shown: str, target: Path, options: TransferOptions) -> None:
    """Download a file that is shared on Google Drive; a later call continues an interrupted one.

    Raises:
        DownloadFailed: gdown is not installed, the file is not shared with everybody, or it is too large.
    """
    try:
        import gdown  # noqa: PLC0415 (an extra)
        import requests  # noqa: PLC0415 (gdown needs it)
    except ImportError as error:
        raise _missing(shown, "gdown", "drive") from error

    def on_progress(done: int, total: int | None) -> None:
        require_allowed_size(shown, total or done, options)
        options.on_bytes(done, total)

    unreachable = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    try:
        gdown.download(
            url=DRIVE_URL.format(file_id),
            output=str(target),
            quiet=True,
            use_cookies=False,
            resume=True,
            progress=on_progress,
            timeout=TIMEOUT_SECONDS,
            retries=RETRIES,
        )
    except DownloadFailed:  # it is too large
        for part in target.parent.glob(f"{target.name}*.part"):
            part.unlink()
        raise
    except Exception as error:  # gdown's own too, and those of pages that it does not understand
        # After its last try, gdown raises its own error from that of requests.
        if isinstance(error, unreachable) or isinstance(error.__cause__, unreachable):
            raise DownloadFailed(shown, "Google Drive cannot be reached", "check the network") from error
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise
        raise _not_shared(shown) from error


def download_from_kaggle(handle: str, shown: str, target: Path) -> None:
    """Download a Kaggle data set and unpack it into the folder `target`.

    Raises:
        DownloadFailed: kagglehub is not installed, or Kaggle does not give the data set.
    """
    shutil.rmtree(target, ignore_errors=True)
    try:
        # It writes messages to stdout, which belongs to the results of a command.
        with contextlib.redirect_stdout(sys.stderr):
            import kagglehub  # noqa: PLC0415 (an extra)
            import requests  # noqa: PLC0415 (kagglehub needs it)

            logging.getLogger("kagglehub").handlers.clear()
            kagglehub.dataset_download(handle, output_dir=str(target))
    except ImportError as error:
        raise _missing(shown, "kagglehub", "kaggle") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise DownloadFailed(shown, "Kaggle cannot be reached", "check the network") from error
    except requests.HTTPError as error:
        status = "no answer" if error.response is None else f"status {error.response.status_code}"
        cure = "check the name; for a private data set, set KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN"
        raise DownloadFailed(shown, f"Kaggle does not give it ({status})", cure) from error
    except OSError:
        raise
    except Exception as error:  # kagglehub's own: a damaged archive, credentials that it cannot read
        cure = "check the name and the credentials in ~/.kaggle, and run the same command again"
        raise DownloadFailed(shown, f"kagglehub failed ({type(error).__name__})", cure) from error


def _missing(shown: str, package: str, extra: str) -> DownloadFailed:
    reason = f"it needs the package {package}, which is not installed"
    return DownloadFailed(shown, reason, f"run `pip install 'nightshift[{extra}]'`")


def _not_shared(shown: str) -> DownloadFailed:
    cure = "share it with everybody who has the link; Drive also blocks for a day what many people download"
    return DownloadFailed(shown, "Google Drive does not give the file", cure)
