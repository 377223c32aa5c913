"""`group.key`: the secret of a storage that turns the identifiers of groups, such as patients, into their names.

It stays in the storage, readable by its owner alone, and no data set has it: who gets the shards cannot try which
identifier a group stands for.
"""

import secrets
from pathlib import Path
from string import hexdigits

from cluster.errors import StorageError
from cluster.files import atomic_write, locked

KEY_FILE = "group.key"
KEY_BYTES = 32
OWNER_ONLY = 0o600


def ensure_group_key(storage: Path) -> str:
    """Return the key of a storage in hexadecimal; write one if there is none.

    Raises:
        StorageError: The file is damaged, or cannot be read or written.
    """
    if (found := read_group_key(storage)) is not None:
        return found
    file = storage / KEY_FILE
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with locked(storage / ".storage.lock"):
            if not file.exists():
                with atomic_write(file, mode=OWNER_ONLY) as draft:
                    draft.write_text(f"{secrets.token_hex(KEY_BYTES)}\n")
    except OSError as error:
        raise StorageError(f"{file} cannot be written ({error.strerror}); check its permissions") from error
    return _read(file)


def read_group_key(storage: Path) -> str | None:
    """Return the key of a storage in hexadecimal, None if it has none.

    Raises:
        StorageError: The file is damaged, or cannot be read.
    """
    file = storage / KEY_FILE
    return _read(file) if file.exists() else None


def _read(file: Path) -> str:
    try:
        found = file.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise StorageError(
            f"{file} may not be read; let its owner give those who pack access to it (chmod g+r), or set "
            "NIGHTSHIFT_STORAGE to a storage of your own"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StorageError(f"{file} cannot be read ({reason}); restore it from a backup") from error
    if len(found) != 2 * KEY_BYTES or set(found) - set(hexdigits):
        raise StorageError(
            f"{file} is damaged; restore it from a backup: `shards add` to data sets with groups needs it"
        )
    return found
