"""The proof of a GGUF file: llama.cpp opens it, and what it makes of texts, conversations and prompts is compared with ours.

Token ids must be equal, without exception. Next-token distributions may be apart by what the kind of storage costs (`KINDS`), and where
that is next to nothing, the likeliest tokens must be the same; a choice between two that are as good as equal is no failure.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unicodedata import category

import torch
from torch import Tensor

from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import UserError
from tunesmith.export.agreement import same_ids
from tunesmith.export.gguf import asked
from tunesmith.export.gguf.quantise import KINDS
from tunesmith.export.gguf.splits import WITHOUT_MARKS
from tunesmith.export.target import ANSWER, Proof, Tell, Truth
from tunesmith.models.gguf_header import read_header

PLACES = 6  # positions of a prompt at which distributions are compared
LIKELIEST = 2000  # tokens of a distribution that are asked for: 96 % and more of it
LONGEST = 7200  # seconds for everything; a large model on a slow machine
NO_LLAMACPP = "llama.cpp opens the file to prove it: pip install 'tunesmith[llamacpp]', or --no-verify"

# what tokenizers differ on: scripts, joined emoji, digits, blanks of all kinds, code, apostrophes, capitals, marks, control characters
HARD_TEXTS = (
    "Hello world",
    "  two blanks in front, one behind ",
    "I'LL say it's theirs, they've DON'T we'd",
    "1 12 123 1234 12345 3.14159 1,000,000 0x1F 2024-11-24 ½ ² ٣٤",
    "tabs\tand\t\tmore\n\n\nthree newlines\r\n\r\nand returns   \n   \n",
    "用一句话解释什么是机器学习。「你好」，世界！123年",
    "日本語のテキストと한국어 문장, Ελληνικά, русский текст, العربية, हिन्दी में",
    "👩‍🔬🇳🇴🤷🏽‍♀️ emoji😀😀 ﷽ ¡olé! naïve façade Zürich",
    "def f(x_1):\n    return {'a': [x_1 ** 2, None]}  # comment\n\tif (a&&b||!c) { i++; }\n",
    '<html><body class="x">&amp;</body></html> https://example.org/a?b=c&d=%20#e',
    "CamelCaseWords snake_case_words SCREAMING_CASE mixedUP123abc a1b2c3",
    "\u00a0no-break\u2003em space\u200bzero width\ufefffeff",
    "---===***___ ... !!! ??? ;;; (((nested))) [[]] {{}} «» “quotes” ‘single’ — – -",
    "x" * 40 + " " * 20 + "\n" * 5 + "end",
)


@dataclass(frozen=True, slots=True)
class Apart:
    """Two models' next-token distributions at all compared places."""

    places: int
    mean_kl: float  # nats, of llama.cpp from ours
    largest_kl: float
    agreement: float  # share of places with the same likeliest token


def proof(
    file: Path,
    kind: str,
    truth: Truth,
    renderer: Any,
    tell: Tell = lambda sentence: None,
    adapter: Path | None = None,
    rendered: Sequence[str] = (),
) -> Proof:
    """Compare what llama.cpp computes with `file` (and `adapter`, a LoRA's file, beside it) with the truth about our model.

    `rendered` are the truth's prompts as texts of somebody else's template: llama.cpp must make the same tokens of them.

    Raises UserError where llama.cpp is not installed. What it makes of the file is in the proof, a file that ends it included.
    """
    check_openable()
    metadata = _metadata(file)
    today = _of_today(renderer)
    texts = [text for text in HARD_TEXTS if _comparable(text, renderer.tokenizer)]
    talks = truth.conversations
    lead = _lead(metadata, renderer.tokenizer)
    questions = {
        "model": str(file),
        "adapter": str(adapter or ""),
        "context": -(-(max(map(len, truth.prompts)) + ANSWER + 8) // 256) * 256,
        "threads": torch.get_num_threads(),
        "texts": [text if text.startswith(" ") else lead + text for text in texts],
        "talks": talks,
        "rendered": list(rendered),
        "prompts": truth.prompts,
        "answer": ANSWER,
        "places": [_places(len(ids)) for ids in truth.prompts],
        "likeliest": LIKELIEST,
        "letter": renderer.tokenizer("a", add_special_tokens=False)["input_ids"][-1],
    }
    tell("llama.cpp opens it")
    found = _asked(questions)
    if isinstance(found, str):
        return Proof(program(), {}, (f"llama.cpp cannot use {file.name}: {found}",))
    failures = _other_ids(texts, found["texts"], renderer.tokenizer, metadata) + _other_prompts(talks, found["talks"], today)
    if rendered:
        failures += same_ids(truth.prompts, found["rendered"], "the template, as llama.cpp tokenises what it writes,")
    apart = _apart(truth, questions["places"], found["likeliest"])
    bound = KINDS[kind].max_kl
    if not apart.mean_kl <= bound:  # NaN is above every bound
        failures.append(
            f"its next-token distributions are {apart.mean_kl:.2e} nats from ours (KL over {apart.places} positions), and {kind} costs "
            f"{bound:g} at most; the weights in the file are not this model's, or too coarse for it: take f16 or q8_0"
        )
    equal, ties, others = _greedy(truth, found["answers"], renderer.stops, KINDS[kind].tie)
    if KINDS[kind].exact:
        failures += others
    figures = {
        "texts": len(texts),
        "conversations": len(talks),
        "positions": apart.places,
        "mean_kl": apart.mean_kl,
        "largest_kl": apart.largest_kl,
        "max_kl": bound,
        "top1_agreement": apart.agreement,
        "greedy_tokens": sum(map(len, truth.answers)),
        "greedy_tokens_equal": equal,
    }
    notes = ties + ([] if KINDS[kind].exact else others) + ([TODAY] if today is not renderer else [])
    return Proof(program(), figures, tuple(failures), tuple(notes))


def check_openable() -> None:
    """Raises UserError where llama.cpp is not installed."""
    if find_spec("xllamacpp") is None:
        raise UserError(NO_LLAMACPP)


def program() -> str:
    """What opens the file."""
    return f"llama.cpp (xllamacpp {version('xllamacpp')})"


TODAY = "the chat template writes the date: llama.cpp writes the day on which it is asked"


def _asked(questions: dict[str, Any]) -> Any:
    """llama.cpp's answers, or a sentence that says how it ended."""
    try:
        ended = subprocess.run(
            [sys.executable, asked.__file__],
            input=json.dumps(questions),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {LONGEST / 3600:g} hours"
    if ended.returncode != 0 or not ended.stdout:
        said = [line.split(" E ", 1)[-1].strip() for line in ended.stderr.splitlines() if " E " in line or "ASSERT" in line]
        return "; ".join(said[:3])[:600] or ended.stderr.strip()[-300:] or f"it ended with code {ended.returncode}"
    return json.loads(ended.stdout)


# --- token ids ---


def _comparable(text: str, tokenizer: Any) -> bool:
    """Whether ids can be turned into the text again: a vocabulary of a few words cannot hold every script."""
    unknown = tokenizer.unk_token_id
    return unknown is None or unknown not in tokenizer(text, add_special_tokens=False)["input_ids"]


def _metadata(file: Path) -> dict[str, Any]:
    """What the file says of itself; nothing where it is damaged, which is llama.cpp's to say."""
    try:
        return read_header(file).metadata
    except ValueError:
        return {}


def _lead(metadata: dict[str, Any], tokenizer: Any) -> str:
    """A blank where our tokenizer puts one in front of a text and the file says that llama.cpp does not."""
    says = metadata.get("tokenizer.ggml.add_space_prefix")
    return " " if says is False and tokenizer.tokenize("x")[0].startswith("▁") else ""


def _other_ids(texts: list[str], found: list[list[int]], tokenizer: Any, metadata: dict[str, Any]) -> list[str]:
    wrong = []
    known = metadata.get("tokenizer.ggml.pre") in WITHOUT_MARKS
    for text, ids in zip(texts, found, strict=True):
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours != ids and not (known and any(category(character)[0] == "M" for character in text)):
            wrong.append(f"llama.cpp makes other tokens of {text[:60]!r}: {_where(ours, ids, tokenizer)}")
    return wrong[:3] + ([f"and so of {len(wrong) - 3} texts more"] if len(wrong) > 3 else [])


def _other_prompts(talks: tuple[list[dict[str, Any]], ...], found: list[dict[str, Any]], renderer: Any) -> list[str]:
    wrong = []
    for talk, theirs in zip(talks, found, strict=True):
        if "refused" in theirs:
            wrong.append(f"llama.cpp's template engine refuses the chat template: {theirs['refused']}")
            continue
        ours = renderer.prompt_ids(talk)
        if ours != theirs["ids"]:
            wrong.append(
                f"llama.cpp's prompt of a conversation has other tokens than the trained: {_where(ours, theirs['ids'], renderer.tokenizer)}"
            )
    return wrong[:3]


def _where(ours: list[int], theirs: list[int], tokenizer: Any) -> str:
    """The first tokens that differ, with what they say."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    said = [f"{ids[at : at + 4]} {tokenizer.convert_ids_to_tokens(ids[at : at + 4])}" for ids in (ours, theirs)]
    return f"from token {at} on {said[1]}, trained as {said[0]}"


def _of_today(renderer: Any) -> Any:
    """The renderer that writes today's date, where the chat template writes one: llama.cpp asks the clock."""
    if not renderer.prints_date:
        return renderer
    return Renderer(renderer.tokenizer, thinking=renderer.thinking, date=date.today().isoformat(), stop_ids=renderer.stops)


# --- what is computed ---


def _places(length: int) -> list[int]:
    """Of so many tokens of a prompt: even steps, the whole prompt last."""
    step = max(length // PLACES, 1)
    return [place for place in range(length - step * (PLACES - 1), length + 1, step) if place > 0]


def _apart(truth: Truth, places: list[list[int]], found: list[list[Any]]) -> Apart:
    kls, same = [], 0
    for logits_TV, counts, likeliest in zip(truth.logits, places, found, strict=True):
        for count, (ids, logprobs) in zip(counts, likeliest, strict=True):
            kls.append(_kl(logits_TV[count - 1], torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float64)))
            same += int(logits_TV[count - 1].argmax()) == ids[0]
    return Apart(len(kls), sum(kls) / len(kls), max(kls, key=lambda kl: math.inf if math.isnan(kl) else kl), same / len(kls))


def _kl(logits_V: Tensor, ids_K: Tensor, theirs_K: Tensor) -> float:
    """KL of their distribution over these K tokens from ours, in nats. Each is made to sum up to one anew: llama.cpp's logarithms are off
    by 1e-4 together, from a sum over the vocabulary in few bits."""
    ours_K = logits_V.double()[ids_K].log_softmax(-1)
    kl = (ours_K.exp() * (ours_K - theirs_K.log_softmax(-1))).sum()
    return float(kl.clamp(min=0)) if not kl.isnan() else math.nan


def _greedy(truth: Truth, found: list[list[int]], stops: set[int], tie: float) -> tuple[int, list[str], list[str]]:
    """(tokens that are the same, ties that were passed over, the first other token of each answer), as sentences."""
    equal, ties, others = 0, [], []
    for number, (ours, margins, theirs) in enumerate(zip(truth.answers, truth.margins, found, strict=True)):
        theirs = theirs[:-1] if theirs and theirs[-1] in stops else theirs
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        equal += at
        if at == len(ours) == len(theirs):
            continue
        if at < len(ours) and margins[at] < tie:
            ties.append(f"answer {number + 1} parts from ours at token {at + 1}, where two tokens were {margins[at]:.1e} apart: a tie")
        elif at == len(ours):
            others.append(f"answer {number + 1} goes on behind token {at}, where ours stops")
        else:
            others.append(f"answer {number + 1} has another token {at + 1} than ours, which was {margins[at]:.1e} above the next one")
    return equal, ties, others
