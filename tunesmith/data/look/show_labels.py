"""What a head learns of a row: the text that is fed, and behind the token at which a label is predicted that label, in ⟦ ⟧.

Angela⟦B-PER⟧ Merkel⟦I-PER⟧ visited⟦O⟧ Paris⟦B-LOC⟧
"""

import contextlib
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunesmith.data.look.places import count
from tunesmith.data.rendering import bio
from tunesmith.data.rendering.labelled import Input, Labelled, LabelledDocument, Task, label_of
from tunesmith.data.rendering.labelled_overlength import fit
from tunesmith.data.rendering.overlength import OnOverlength
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import BadRow, RowError, Sample
from tunesmith.data.sources import where

LEGEND = "the label of each place stands behind it, between ⟦ and ⟧"
STYLES = {bio.OUTSIDE: "bright_black"}  # any other label: LABEL
LABEL = "bold green"


def show(
    rows: Sequence[Sample | BadRow],
    renderer: Renderer,
    task: Task,
    input: Input,
    *,
    max_length: int = 1024,
    on_overlength: OnOverlength = "truncate",
    console: Console | None = None,
) -> int:
    """Print the documents of the rows; 0, or 2 where one of them cannot be used. Labels are those of these rows."""
    console = console or Console(soft_wrap=True, highlight=False)
    labelled = Labelled(renderer, task, _labels([row for row in rows if isinstance(row, Sample)], task), input)
    console.print(Text(LEGEND, "bright_black"))
    usable = True
    for row in rows:
        try:
            if isinstance(row, BadRow):
                raise RowError(row.reason)
            fitted = fit(row, labelled.documents(row), labelled, max_length=max_length, on_overlength=on_overlength)
        except RowError as error:
            console.print(Text(f"{where(row) if isinstance(row, BadRow) else row.origin}: cannot be used: {error}", "red"))
            usable = False
            continue
        fate = f"{fitted.fate}{': ' * bool(fitted.reason)}{fitted.reason}"
        for document in fitted.documents:
            size = f"{count(len(document.fed.ids), 'token')}, {count(len(document.targets), 'label')}"
            console.print(Text(f"{row.origin}: {size}, row {fate}", "bold cyan"))
            console.print(drawn(document, labelled))
            console.print()
        if not fitted.documents:
            console.print(Text(f"{row.origin}: not used, {fate}", "red"))
            usable = False
    for note, number in sorted(labelled.notes.items()):
        console.print(Text(f"{number} {note}", "yellow"))
    return 0 if usable else 2


def drawn(document: LabelledDocument, renderer: Labelled) -> Text:
    """The tokens' text with the labels in it."""
    text, at = Text(), 0
    for position, target in zip(document.fed.positions, document.targets, strict=True):
        label = renderer.labels[target]
        text.append(_said(document.fed.ids[at : position + 1], renderer))
        text.append(f"⟦{label}⟧", STYLES.get(label, LABEL))
        at = position + 1
    return text.append(_said(document.fed.ids[at:], renderer))


def _said(ids: list[int], renderer: Labelled) -> str:
    return renderer.encoder.decode([ids])[0] if ids else ""


def _labels(samples: Sequence[Sample], task: Task) -> list[str]:
    if task == "tag":
        return bio.labels_for(dict.fromkeys(kind for sample in samples for _, _, kind in sample.entities or ()))
    found: dict[str, None] = {}
    for sample in samples:
        with contextlib.suppress(RowError):  # said where the row is shown
            found[label_of(sample)] = None
    return list(found)
