"""The proof before training a head: what is fed says the text, and each label stands where its word ends and means what the row says."""

from collections.abc import Sequence

from tunesmith.data.rendering import bio
from tunesmith.data.rendering.labelled import Labelled, LabelledDocument
from tunesmith.data.rendering.proof import EVERY, SHOWN, SOME, Proved, lossy, same, short
from tunesmith.errors import ProofFailed


def prove(documents: Sequence[LabelledDocument], renderer: Labelled) -> Proved:
    """Decode what is fed and compare it with the text, and what the labels mean with the row's own label or entities.

    Raises ProofFailed (exit code 3), which shows up to five rows.
    """
    chosen = documents if len(documents) <= EVERY else [documents[n * len(documents) // SOME] for n in range(SOME)]
    bare = 0 if renderer.template else len(renderer.bos)  # a template writes it itself
    decoded = renderer.encoder.decode([document.fed.ids[bare:] for document in chosen])
    problems: list[str] = []
    approximate = 0
    meaning = _class if renderer.task == "classify" else _entities
    for document, text in zip(chosen, decoded, strict=True):
        said = document.fed.said
        own = _places(document, renderer) or meaning(document, renderer)
        if not same(text, said, False):
            approximate += 1
            if _signs(text) != _signs(said) and not lossy(text, said, renderer, False):
                own.append(f"the tokens that would be fed say {short(text)}, the text is {short(said)}")
        problems += [f"{document.origin}: {problem}" for problem in own]
    if renderer.task == "tag":
        found, rough = _words(chosen, renderer)
        problems, approximate = problems + found, approximate + rough
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ProofFailed(
            "what would be learned is not what the rows say; nothing was trained:",
            *problems[:SHOWN],
            *more,
            "the cause is the model's tokenizer files or, with task.input=chat, its chat template",
        )
    return Proved(len(chosen), sum(len(document.targets) for document in chosen), approximate)


def _signs(text: str) -> str:
    """A text without its blanks, which some role tokens swallow, and SentencePiece's sign for one."""
    return "".join(text.replace("▁", " ").split())


def _places(document: LabelledDocument, renderer: Labelled) -> list[str]:
    """One label a place, places in order and among the tokens that are fed, labels among those of the head."""
    fed, targets = document.fed, document.targets
    rising = all(a < b for a, b in zip((-1, *fed.positions), (*fed.positions, len(fed.ids)), strict=True))
    if not fed.positions or len(targets) != len(fed.positions) or not rising:
        return [f"{len(targets)} labels for the places {fed.positions[:SHOWN]} among {len(fed.ids)} tokens"]
    wrong = [target for target in targets if not 0 <= target < len(renderer.labels)]
    return [f"label {wrong[0]} of a head with {len(renderer.labels)}"] if wrong else []


def _class(document: LabelledDocument, renderer: Labelled) -> list[str]:
    if document.fed.positions != (len(document.fed.ids) - 1,):
        return ["its label does not stand at the last token"]
    learned = renderer.labels[document.targets[0]]
    return [] if learned == document.meant else [f"its label is {document.meant!r}, {learned!r} would be learned"]


def _entities(document: LabelledDocument, renderer: Labelled) -> list[str]:
    """Each entity that words can say is found again, and each that is found is one of the row's, or holds one to whole words."""
    fed, problems = document.fed, list[str]()
    assert isinstance(document.meant, tuple)
    learned = set(bio.tagged(fed.source, fed.words, [renderer.labels[target] for target in document.targets]).entities)
    starts, ends = {start for start, _ in fed.words}, {end for _, end in fed.words}
    for start, end, kind in document.meant:
        alone = not any(a < end and start < b for a, b, other in document.meant if (a, b, other) != (start, end, kind))
        if alone and start in starts and end in ends and (start, end, kind) not in learned:
            problems.append(f"{fed.source[start:end]!r} is {kind}, but would not be learned as such")
    for start, end, kind in learned - set(document.meant):
        if not any(other == kind and start <= a and b <= end for a, b, other in document.meant):
            problems.append(f"{fed.source[start:end]!r} would be learned as {kind}, which the row does not say")
    return problems


def _words(documents: Sequence[LabelledDocument], renderer: Labelled) -> tuple[list[str], int]:
    """The tokens up to each label end with its word; and how many words the tokenizer itself changes."""
    spoken = [(document, n) for document in documents for n in range(len(document.fed.positions))]
    bounds = [((document.fed.positions[n - 1] + 1) if n else 0, document.fed.positions[n] + 1) for document, n in spoken]
    texts = renderer.encoder.decode([document.fed.ids[begin:end] for (document, _), (begin, end) in zip(spoken, bounds, strict=True)])
    problems, rough = [], 0
    for (document, n), text in zip(spoken, texts, strict=True):
        word = document.fed.source[slice(*document.fed.words[n])]
        if text.endswith(word):
            continue
        rough += 1
        alone = renderer.encoder.decode(renderer.encoder.batch([word], split=True))[0].strip()
        if alone == word or not text.endswith(alone):
            problems.append(f"{document.origin}: the label of {short(word)} would stand behind {short(text[-60:])}")
    return problems, rough
