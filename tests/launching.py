"""How a script that tests start in several processes ends: as the command does (`starling.cli.main`), also when it fails.

Threads of torch's process groups can abort the interpreter's shutdown, and the exit code would be the abort's (-6).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def end_with(main: Callable[[], None]) -> NoReturn:
    """Run it and leave without the interpreter's shutdown: 0, or 1 with the traceback on stderr."""
    code = 0
    try:
        main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
