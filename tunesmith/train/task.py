"""What a run predicts, decided before its rows are tokenised: which labels there are, what is fed of a row, which head learns."""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

from tunesmith.config import Run, Task
from tunesmith.data.corpus.blocks import Sources
from tunesmith.data.corpus.documents import Documents
from tunesmith.data.corpus.samples import samples_of
from tunesmith.data.look.classes import Found
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts.adapter_file import some
from tunesmith.methods.rates import rate_at
from tunesmith.methods.tuning import Tuning
from tunesmith.models import score
from tunesmith.models.score import Score
from tunesmith.tasks import TASKS
from tunesmith.train.corpora import Tell

Input = Literal["text", "chat"]
INPUT: dict[str, Input] = {"classify": "text", "tag": "text"}  # what `task.input: auto` is


@dataclass(frozen=True)
class Asked:
    """`labels` are the user's, `classes` the rows of the head; both are empty for answers and raw text."""

    renderer: Any  # a Renderer, or what has its interface for a task with a head
    task: str = ""  # of the head; "" where there is none
    labels: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    input: Input = "text"

    def give_head(self, model: Any, tuning: Tuning, documents: Documents, run: Run, device: Any = None) -> None:
        """Let the task's head be trained beside what the method trains, at a rate of its own. Raises UserError where there is no
        place for it."""
        if not self.task:
            return
        if tuning.head is None:  # an adapter to go on from may have brought its own
            head = score.make(model, self.task, self.classes, device, input=self.input)
            method.give_head(model, tuning, head)
        else:
            tuning.head.input = self.input  # what is saved says how it was fed last
        assert tuning.head is not None
        width = tuning.head.weight.shape[1]
        ratio = rate_at(score.LEARNING_RATES, width) / rate_at(method.learning_rates(run.method), width)
        tuning.learning_rate_ratios.update(dict.fromkeys(tuning.head.tensors, ratio))
        if run.task.class_weights == "balanced":
            counts_L = np.bincount(documents.targets_M, minlength=len(self.classes))
            tuning.head.class_weights_L = score.balanced(counts_L.tolist())


def has_head(task: Task) -> bool:
    """Whether the run learns a head of its own in place of words."""
    return task.name in TASKS and TASKS[task.name].HEAD and not (task.name == "classify" and task.head == "words")


def idle(task: Task) -> list[str]:
    """A sentence for every setting that would change nothing with this task, and what to do instead."""
    labelled = task.name in TASKS and TASKS[task.name].HEAD
    problems = []
    if task.head == "words" and task.name != "classify":
        cure = "task.name=generate learns entities as answers" if task.name == "tag" else "take task.name=classify, or leave it out"
        problems.append(f"task.head=words writes labels, which task.name={task.name} does not ask for; {cure}")
    elif not has_head(task):
        without = "task.head=words" if labelled else f"task.name={task.name}"
        cure = "take task.head=score" if labelled else "take task.name=classify or tag"
        given = {"input": (task.input, "auto"), "class_weights": (task.class_weights, "none")}
        problems += [
            f"task.{key}={value} is for a head, and {without} has none; {cure}, or leave it out"
            for key, (value, usual) in given.items()
            if value != usual
        ]
    if task.labels != "auto" and not labelled:
        problems.append(f"task.labels is for labels, and task.name={task.name} has none; take task.name=classify or tag, or leave it out")
    return problems


def ask(run: Run, sources: Sources, renderer: Renderer, brought: Tuning, tell: Tell) -> Asked:
    """Labels are those of the setting, of the adapter to go on from, or of all rows. Raises UserError where there are none."""
    labels = [] if run.task.labels == "auto" else list(run.task.labels)
    if brought.head is not None:
        labels = _brought(run, brought.head, labels)
    if run.task.name not in ("classify", "tag"):
        return Asked(renderer)
    task = TASKS[run.task.name]
    if not labels:
        tell("looking up the labels")
        found = _found(task, sources)
        labels = found.labels
        for note in found.notes:
            tell(note)
    elif not has_head(run.task):  # a head refuses a row whose label it has no place for; an answer can be anything
        lacking = [label for label in _found(task, sources).labels if label not in labels]
        if lacking:
            named = ", ".join(some([repr(label) for label in lacking], 10))
            raise UserError(f"task.labels lacks {named}: rows of the training data have it; name every label, or mend the rows")
    if not has_head(run.task):
        return Asked(renderer, labels=labels)
    usual: Any = brought.head.input if brought.head is not None else INPUT[run.task.name]
    given: Input = usual if run.task.input == "auto" else run.task.input
    return Asked(task.render(renderer, labels, given), run.task.name, labels, task.classes(labels), given)


def _found(task: ModuleType, sources: Sources) -> Found:
    """What the rows hold. Raises UserError where that is too little, with the first row that could not be used."""
    lost: list[str] = []
    try:
        found: Found = task.labels(samples_of(sources, lost))
    except UserError as error:
        raise UserError(*error.problems, *lost[:1]) from None
    return found


def _brought(run: Run, head: Score, labels: list[str]) -> list[str]:
    """The labels of the head that an adapter to go on from has. Raises UserError where the run asks for others."""
    known = TASKS[head.task].labels_of(head.labels)
    if head.task != run.task.name or not has_head(run.task) or (labels and labels != known):
        raise UserError(
            f"model.adapter: {run.model.adapter} has a head for task.name={head.task} with the labels {', '.join(known)}; "
            f"a run that goes on from it keeps both: take task.name={head.task}, and leave task.labels and task.head out"
        )
    return known


def sentence(task: Task) -> str:
    """The task in words, from which virtual tokens and prefixes begin."""
    if task.name == "classify":
        return f"Classify the text as one of: {', '.join(task.labels)}.\n"
    if task.name == "tag":
        return f"Mark every {', '.join(task.labels)} in the text.\n"
    return "Continue the text.\n" if task.name == "text" else "Answer the request exactly as the examples do.\n"
