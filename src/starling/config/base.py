"""What every part of the settings is made of: the frozen section, its fingerprint, and secrets that are only named."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from starling.errors import ConfigError
from starling.records import content_hash


class Section(BaseModel):
    """Base of all settings: frozen, unknown keys refused, defaults validated, NaN and infinity refused.

    A part that is given in part keeps the rest of *its* default: `policy.optimizer = {learning_rate = 1e-6}` leaves the betas
    that the policy's optimizer has by default, not those of optimizers in general.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete_parts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        completed = dict(given)
        for name, info in cls.model_fields.items():
            part = completed.get(name)
            if isinstance(info.default, BaseModel) and isinstance(part, dict):
                default = info.default.model_dump()
                if part.get("type", default.get("type")) == default.get("type"):
                    completed[name] = default | part
        return completed


def fingerprint(part: BaseModel | None) -> str:
    """Hash of a part of the settings: what makes the stages that read it stale."""
    return content_hash(part.model_dump(mode="json") if part is not None else None, 16)


def secret(name: str | None, setting: str = "api_key_env") -> str | None:
    """The value of an environment variable named in the settings; only its name is ever stored.

    Args:
        name: the variable; None for a server without keys.
        setting: where the name stands, for the message.

    Raises:
        ConfigError: the variable is named but not set.
    """
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise ConfigError(
            f"The environment variable {name} is not set", where=setting, cure=f"export {name}=… before the command"
        )
    return value
