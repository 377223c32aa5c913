"""`group.key`: the secret of a storage that turns patient identifiers into the names of groups.

It stays in the storage, readable by its owner alone, and no data set has it: who gets the shards cannot try which
identifier a group stands for.
"""

import secrets
from pathlib import Path

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
    file = storage / KEY_FILE
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with locked(storage / ".storage.lock"):
            if not file.exists():
                with atomic_write(file, mode=OWNER_ONLY) as draft:
                    draft.write_text(f"{secrets.token_hex(KEY_BYTES)}\n")
            found = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StorageError(f"{file} cannot be used ({reason}); let the one who packs own it") from error
    if len(found) != 2 * KEY_BYTES:
        raise StorageError(f"{file} is damaged; restore it from a backup, as data sets with DICOM groups need it")
    return found
