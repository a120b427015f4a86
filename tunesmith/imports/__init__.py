"""Settings of other fine-tuning programs. A program is one file with `NAME`, `SIGNS`, its tables and `translate`, and one line here."""

from types import ModuleType

from tunesmith.imports import axolotl, llamafactory, swift

TOOLS: dict[str, ModuleType] = {
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "swift": swift,
}
