"""The version that operators ran before this one, to upgrade from and to go back to."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent.parent / "data" / "coverart-d72e759.tar.xz"
"""Where it comes from is told in tests/data/README.md."""
SHA256 = "2d88d365df876d2a062305ceafaa1aab2b6a201b4c5dcb3ca9fec75c70072331"


def unpack_previous(folder: Path) -> Path:
    """
    Unpack the version before this one.

    :returns: what stands first on PYTHONPATH for `twistd` and `python -m coverart.cli` to be its.
    """
    assert hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() == SHA256, f"{ARCHIVE} was changed"
    with tarfile.open(ARCHIVE) as archive:
        # Not extractall(): before 3.11.4 it can't be told to refuse names that lead elsewhere.
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                path = folder / member.name
                assert path.resolve().is_relative_to(folder.resolve()), member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    return folder
