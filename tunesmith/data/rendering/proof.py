"""The proof before training: the tokens that are learned are the assistant's words and its stop token, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rendering.render import Document, Renderer
from tunesmith.errors import ProofFailed

EVERY = 20_000  # documents; of more than that, `SOME` spread evenly are proved
SOME = 1_000
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Proved:
    documents: int  # how many were looked at
    spans: int
    approximate: int  # spans whose words the tokenizer itself cannot give back exactly (it lower-cases, normalises, ...)


def prove(documents: Sequence[Document], renderer: Renderer) -> Proved:
    """Decode what is learned and compare it with what the assistant said.

    Raises ProofFailed (exit code 3), which shows up to five rows, where tokens and words differ, a stop token is
    missing, nothing is learned, or everything is learned although there is a prompt.
    """
    chosen = documents if len(documents) <= EVERY else [documents[n * len(documents) // SOME] for n in range(SOME)]
    problems: list[str] = []
    said = [(document, n) for document in chosen for n in range(len(document.answers))]
    decoded = iter(renderer.encoder.decode([document.ids[slice(*document.spans[n])] for document, n in said]))
    stops, approximate = renderer.stops, 0
    for document in chosen:
        problems += [f"{document.origin}: {problem}" for problem in _share(document)]
        for n, answer in enumerate(document.answers):
            text, end = next(decoded), document.spans[n][1]
            cut = document.cut and n == len(document.answers) - 1
            if not cut and document.ids[end - 1] not in stops:
                problems.append(f"{document.origin}: the answer ends without a stop token: …{text[-60:]!r}")
            if not same(text, answer, cut):
                if not lossy(text, answer, renderer, cut):
                    problems.append(f"{document.origin}: the tokens that would be learned say {short(text)}, the answer is {short(answer)}")
                approximate += 1
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ProofFailed(
            "what would be learned is not what the assistant says; nothing was trained:",
            *problems[:SHOWN],
            *more,
            "look at such a row with `tunesmith data show FILE --model M`; the cause is the model's chat template or tokenizer files",
        )
    return Proved(len(chosen), len(said), approximate)


def _share(document: Document) -> list[str]:
    """Nothing learned is never right; everything is right for raw text only, where the first token cannot be learned."""
    learned = document.learned
    if learned == 0:
        return [f"none of its {len(document.ids)} tokens would be learned; leave the row out or mend it"]
    if learned == len(document.ids):
        return [f"all of its {learned} tokens would be learned, the prompt too"]
    bounds = [0, *(place for span in document.spans for place in span), len(document.ids)]
    return [] if bounds == sorted(bounds) else [f"its learned tokens {document.spans} overlap or lie outside"]


def same(text: str, answer: str, cut: bool) -> bool:
    """Equal, but for a blank in front that some tokenizers only show inside a text, and a character that a cut split."""
    if cut:
        return answer.lstrip(" ").startswith(text.lstrip(" ").rstrip("�"))
    return text == answer or text.lstrip(" ") == answer.lstrip(" ")


def lossy(text: str, answer: str, renderer: Any, cut: bool) -> bool:
    """Whether the difference is the tokenizer's own: the answer alone comes back changed, and as these tokens say it."""
    alone = renderer.encoder.decode(renderer.encoder.batch([answer]))[0]
    return alone != answer and same(text, alone, cut)


def short(text: str) -> str:
    return repr(text if len(text) <= 160 else text[:75] + " … " + text[-75:])
