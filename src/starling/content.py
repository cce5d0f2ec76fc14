"""What the user's own files and model folders hold, as a short hash: a stage is stale when they change, not when they move.

Files up to 64 MiB are hashed whole. Of larger ones (weights, mostly) the size and the first and last MiB count: reading a
70 GB model to see that it is still the same would take longer than it is worth.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from starling.records import content_hash

WHOLE_BYTES = 64 * 2**20
ENDS_BYTES = 2**20
MISSING = "missing"


def content_of(path: Path) -> str:
    """16 hex digits for a file, or for the files (names and contents) of a folder or a glob's matches; or `missing`."""
    if path.is_file():
        return _file(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return content_hash([[p.relative_to(path).as_posix(), _file(p)] for p in files], 16)
    if glob.has_magic(str(path)):
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        return content_hash([[p.name, _file(p)] for p in matches], 16) if matches else MISSING
    return MISSING


def _file(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(f"{size}:".encode())
        digest.update(file.read(ENDS_BYTES))
        file.seek(-ENDS_BYTES, 2)
        digest.update(file.read(ENDS_BYTES))
        return digest.hexdigest()[:16]
