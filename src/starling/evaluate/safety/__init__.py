"""Refusals: over-refusal of safe prompts and attack success of unsafe ones, from files or live.

cases (what is asked) · said (what models said, from files) · labels (was it a refusal?) · measure (shares, matrix, the result) ·
agreement (with people) · from_files · live. The offline classifier is `starling.refusals`.
"""

from starling.evaluate.safety.from_files import Measured, from_files
from starling.evaluate.safety.live import run

__all__ = ["Measured", "from_files", "run"]
