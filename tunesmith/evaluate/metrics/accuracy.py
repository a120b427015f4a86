"""Share of answers that name the right label.

An answer is a label once blanks around it and the case of its letters are set aside; the labels are those that the
references use. An answer that is none of them is wrong, and `also` says how many such there were (`unknown`): a high
share means that the model does not know the labels' names, not that it confuses them.
"""

from tunesmith.evaluate.labels import are_labels, label
from tunesmith.evaluate.scored import Scored, mean


def score(predictions: list[str], references: list[str]) -> Scored:
    known = {label(text) for text in references}
    unknown = sum(label(text) not in known for text in predictions)
    right = [float(label(ours) == label(theirs)) for ours, theirs in zip(predictions, references, strict=True)]
    return mean(right, unknown=unknown / max(len(predictions), 1))


def suits(references: list[str]) -> bool:
    return are_labels(references)
