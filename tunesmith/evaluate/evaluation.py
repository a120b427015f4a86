"""What an evaluation found: scores, how sure they are, and every row with what was expected and what came."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from tunesmith.evaluate.confusion import Confusion
from tunesmith.evaluate.scored import Scored

LOSS = "loss"  # among the metrics' names, though no answer is needed for it
LIKELIEST = 5  # labels that are kept of each row


@dataclass(frozen=True, slots=True)
class Answered:
    """One row: what was asked, what was expected, what came."""

    origin: str
    prompt: str  # the last message before the answer, or the text that was classified or tagged
    reference: str
    prediction: str
    scores: dict[str, float]
    stopped: bool  # False: cut at max_new_tokens
    thinking: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)  # of the likeliest labels, falling
    entities: tuple[tuple[int, int, str], ...] = ()  # where a tagger found them: characters of `prompt`, the end not included


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`scores` holds every metric, `NAME.part` for what belongs to it, `loss` in nats a token (or a label) and `perplexity`."""

    model: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %, of the metrics
    rows: list[Answered]
    scored: dict[str, Scored]
    learned_tokens: int  # that the loss is the mean of, or labels; 0 without a loss
    unfinished: int  # answers cut at max_new_tokens
    confusion: Confusion | None = None  # where labels are told apart


def record(row: Answered) -> dict[str, Any]:
    """A line of `predictions.jsonl`."""
    return {key: value for key, value in asdict(row).items() if value or key not in ("thinking", "probabilities", "entities")}


def likeliest(labels: Sequence[str], logp_L: Tensor) -> dict[str, float]:
    """The likeliest labels with their probabilities, falling; of equal ones the first."""
    order = logp_L.argsort(descending=True, stable=True)[:LIKELIEST].tolist()
    return {labels[number]: round(logp_L[number].exp().item(), 6) for number in order}
