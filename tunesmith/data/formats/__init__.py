"""Shapes of rows. A format is one file with `COLUMNS`, `recognises`, `to_sample`, one line here, one test and one page."""

from types import ModuleType

from tunesmith.data.formats import alpaca, conll, labels, messages, preference, prompt, sharegpt, spans, text

# Where a row fits several, the first counts: judged answers before those that are learned, raw text last.
FORMATS: dict[str, ModuleType] = {
    "preference": preference,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt": prompt,
    "conll": conll,
    "spans": spans,
    "labels": labels,
    "text": text,
}
