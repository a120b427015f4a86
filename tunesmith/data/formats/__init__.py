"""Shapes of rows. A format is one file with `COLUMNS`, `recognises`, `to_sample`, one line here, one test and one page."""

from types import ModuleType

from tunesmith.data.formats import alpaca, messages, prompt, text

# Where a row fits several, the first counts.
FORMATS: dict[str, ModuleType] = {
    "messages": messages,
    "alpaca": alpaca,
    "prompt": prompt,
    "text": text,
}
