"""Answers to prompts: of each conversation the assistant's words are learned, by the model's own head."""

from tunesmith.data.sample import Sample

HEAD = False
METRICS: tuple[str, ...] = ()  # whichever suit the answers


def misfit(sample: Sample) -> str:
    """Why a row cannot be learned so, or ""."""
    return "" if sample.messages else "raw text has no answers: take task.name=text"
