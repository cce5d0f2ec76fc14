"""What stage 1 keeps on disk while it works: values by number, in a file that is gone when the process is.

Millions of conversations and answers are appended once and read back in another order; in memory stay eight bytes for each.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from pathlib import Path
from typing import Any

from starling.errors import ArtifactError


class Store:
    """A list of JSON values on disk.

    Args:
        folder: where the file goes; the system's folder for temporary files when None. It has no name there, so a process
            that is killed leaves nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the object)
        self._ends = array("Q", [0])
        self._flushed = True

    def append(self, value: Any) -> int:
        """Its number."""
        data = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        self._write(data)
        self._ends.append(self._ends[-1] + len(data))
        return len(self._ends) - 2

    def _write(self, data: bytes = b"") -> None:
        try:
            self._file.write(data) if data else self._file.flush()
        except OSError as error:
            raise ArtifactError(
                f"What was gathered so far cannot be written: {error.strerror}",
                where=str(self._folder or tempfile.gettempdir()),
                cure="make room there, then run the stage again",
            ) from None
        self._flushed = not data

    def __getitem__(self, number: int) -> Any:
        if not self._flushed:
            self._write()
        start, end = self._ends[number], self._ends[number + 1]
        return json.loads(os.pread(self._file.fileno(), end - start, start))

    def __len__(self) -> int:
        return len(self._ends) - 1
