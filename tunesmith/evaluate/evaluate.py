"""Scores of a model on samples: what it answers where the data has an answer, and the loss of that answer.

For every conversation the messages before the last assistant turn are fed exactly as a server would feed them, and that
turn's content is the reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.sample import Message, RowError, Sample
from tunesmith.errors import UserError
from tunesmith.evaluate import predictions
from tunesmith.evaluate.confusion import confusion
from tunesmith.evaluate.evaluation import LOSS, Answered, Evaluation, likeliest
from tunesmith.evaluate.loss import perplexity, sample_loss
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.rows import each
from tunesmith.evaluate.scored import interval
from tunesmith.evaluate.verbaliser import words_logp
from tunesmith.generate import Sampling, generate

LEAST_ROOM, MOST_ROOM, THINKING_ROOM = 32, 1024, 1024  # tokens


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation up to the answer, and the answer."""

    origin: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    reference: str


def evaluate(
    tuned: Any,
    samples: Sequence[Sample],
    *,
    metrics: list[str] | Literal["auto"] = "auto",
    sampling: Sampling | None = None,
    labels: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score `tuned` (a `tuned.Tuned`). `auto` is the loss and every metric that suits the references, or the task of a head.

    Without `sampling` answers are greedy and have `answer_room` tokens; with `labels` the answer is that one of them whose words
    are likeliest. Raises UserError for unknown metrics, for no samples, for raw text with a metric other than the loss, and for
    rows that the model's template refuses.
    """
    if tuned.head is not None:
        return predictions.evaluate(tuned, samples, metrics, on_progress)
    asked = questions(tuned, samples)
    names = choose(metrics, [question.reference for question in asked])
    if not samples:
        raise UserError("there are no rows to evaluate on")
    loss, learned_tokens = sample_loss(tuned, samples) if LOSS in names else (0.0, 0)
    scores = {LOSS: loss, "perplexity": perplexity(loss)} if learned_tokens else {}
    names = [name for name in names if name != LOSS]
    if not names:
        return Evaluation(tuned.name, scores, {}, [], {}, learned_tokens, 0)
    if not asked:
        raise UserError(f"{', '.join(names)}: raw text has no answers to score; its metric is the loss")
    likely: list[dict[str, float]] = [{} for _ in asked]
    if labels:
        logp_NL = words_logp(tuned, [sample for sample in samples if sample.messages], labels, on_progress=on_progress)
        likely = [likeliest(labels, logp_L) for logp_L in logp_NL.log_softmax(-1)]
        answers = [(next(iter(probabilities)), "", True) for probabilities in likely]
    else:
        answers = _answers(tuned, asked, sampling or Sampling(max_new_tokens=answer_room(tuned, asked)), on_progress)
    said, references = [answer[0] for answer in answers], [question.reference for question in asked]
    scored = {name: METRICS[name].score(said, references) for name in names}
    for name, result in scored.items():
        scores[name] = result.value
        scores |= {f"{name}.{part}": value for part, value in result.also.items()}
    rows = [
        Answered(
            origin=question.origin,
            prompt=_shown(question.messages[-1]["content"]),
            reference=question.reference,
            prediction=prediction,
            scores={name: result.per_row[at] for name, result in scored.items()},
            stopped=stopped,
            thinking=thinking,
            probabilities=likely[at],
        )
        for at, (question, (prediction, thinking, stopped)) in enumerate(zip(asked, answers, strict=True))
    ]
    intervals = {name: interval(result) for name, result in scored.items()}
    unfinished = sum(not row.stopped for row in rows)
    told = confusion(said, references) if "accuracy" in names else None
    return Evaluation(tuned.name, scores, intervals, rows, scored, learned_tokens, unfinished, told)


def choose(metrics: list[str] | Literal["auto"], references: list[str]) -> list[str]:
    """The metrics' names; `auto` is resolved by looking at the references. Raises UserError for unknown names."""
    if metrics == "auto":
        return [LOSS, *(name for name, metric in METRICS.items() if references and metric.suits(references))]
    if unknown := [name for name in metrics if name != LOSS and name not in METRICS]:
        raise UserError(*(f"no metric {name!r}; there are {', '.join([LOSS, *METRICS])}" for name in unknown))
    return list(dict.fromkeys(metrics))


def questions(tuned: Any, samples: Sequence[Sample]) -> list[Question]:
    """The conversations among the samples, split before their last assistant turn. Raises UserError for those without one."""
    return each([sample for sample in samples if sample.messages], lambda sample: _question(tuned, sample))


def answer_room(tuned: Any, asked: Sequence[Question]) -> int:
    """Tokens for an answer: twice the longest reference, so that only an answer that rambles is cut."""
    longest = max(len(tuned.tokenizer(question.reference, add_special_tokens=False)["input_ids"]) for question in asked)
    thinks = "<think>" in str(tuned.tokenizer.chat_template or "")
    return min(max(2 * longest, LEAST_ROOM), MOST_ROOM) + (THINKING_ROOM if thinks else 0)


def _question(tuned: Any, sample: Sample) -> Question:
    last = max((at for at, message in enumerate(sample.messages) if message["role"] == "assistant"), default=0)
    if not last:
        raise RowError("there is no answer to compare with, or nothing is asked before it")
    answer, before = sample.messages[last], sample.messages[:last]
    reference = _shown(answer.get("content") or "")
    if answer.get("tool_calls"):  # as the template writes the call, since that is what the model has to write
        reference = _without_stop(tuned, tuned.renderer.answer(sample.messages[: last + 1], sample.tools))
    return Question(sample.origin, before, sample.tools, reference)


def _without_stop(tuned: Any, text: str) -> str:
    """Special tokens are left out of predictions, so the stop token goes from the reference too."""
    for token in tuned.renderer.stops:
        text = text.removesuffix(tuned.tokenizer.decode([token]))
    return split_thinking(text)[1]


def _answers(
    tuned: Any, asked: list[Question], sampling: Sampling, on_progress: Callable[[int, int], None] | None
) -> list[tuple[str, str, bool]]:
    """(answer, thinking, stopped) of each question."""
    prompts = each(asked, lambda question: tuned.renderer.prompt_ids(question.messages, question.tools))
    results = []
    for made in generate(tuned.model, prompts, tuned.renderer.stops, sampling, on_progress=on_progress):
        text = tuned.tokenizer.decode(made.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        thinking, answer = split_thinking(text)
        results.append((answer, thinking, made.stopped))
    return results


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer), as a server's reasoning parser splits them; a template may have opened the block already."""
    thinking, mark, answer = text.rpartition("</think>")
    return (thinking.partition("<think>")[2].strip() or thinking.strip(), answer.lstrip()) if mark else ("", text)


def _shown(content: Any) -> str:
    """The text of a message; parts of a list one after another."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or [])
