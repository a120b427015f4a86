"""Raw text: every token of a document is learned from those before it, by the model's own head."""

from tunesmith.data.sample import Sample

HEAD = False
METRICS: tuple[str, ...] = ("loss",)  # there is no answer to score


def misfit(sample: Sample) -> str:
    """Why a row cannot be learned so, or ""."""
    return "" if sample.text is not None else "a conversation is no raw text: take task.name=generate"
