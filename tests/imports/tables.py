"""What the tests of each program's tables share."""

from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith import config
from tunesmith.imports.translation import Translation
from tunesmith.verbs import import_config


def translated(given: dict[str, Any]) -> Translation:
    """The settings of a file with these values."""
    return import_config.translated(Path("file.yaml"), given, {})


def known(module: ModuleType) -> set[str]:
    """Every key that a program's tables and functions know."""
    listed = {key for table in (module.NEEDLESS, module.LEFT) for keys in table.values() for key in keys.split()}
    return set(module.CARRIED) | listed | set(module.READ.split())


def runs(settings: dict[str, Any]) -> bool:
    """Whether a run file can be written of them. Raises UserError where it cannot."""
    return bool(config.load(None, [(key, value, "a test") for key, value in settings.items()]).run.model.source)
