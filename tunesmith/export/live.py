"""What a model says with its adapter in place, kept so that others can be compared with it once it has left the memory."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tunesmith.export.difference import Asked, Difference, answers_of, compare, own_rows, prompts
from tunesmith.generate import serving
from tunesmith.tuned import Tuned


@dataclass(frozen=True, slots=True)
class Apart:
    """A model against the live adapter: on sample prompts, and on rows of the run's own data where they are there."""

    prompts: Difference
    rows: Difference | None

    @property
    def decides(self) -> Difference:
        """What bases are chosen by: the data that the model was trained for, if it is there."""
        return self.prompts if self.rows is None else self.rows

    @property
    def worst_kl(self) -> float:
        """The larger of the mean KL divergences; NaN where one is."""
        kls = [found.mean_kl for found in (self.prompts, self.rows) if found is not None]
        return next((kl for kl in kls if kl != kl), max(kls))

    def facts(self) -> dict[str, Any]:
        """For merge.json."""
        rows = {} if self.rows is None else {"rows": dataclasses.asdict(self.rows)}
        return {"prompts": dataclasses.asdict(self.prompts)} | rows


@dataclass(frozen=True)
class Live:
    """What the model says with its adapter in place, and what it was asked."""

    prompts: Sequence[Asked]
    rows: Sequence[Asked]
    head: Any  # a task's head, which predicts in place of the model's own
    logits: Sequence[Tensor]  # of the prompts, then of the rows

    def ask(self, model: Any) -> list[Tensor]:
        """What another model says to the same."""
        with serving(model):
            return answers_of(model, [*self.prompts, *self.rows], self.head)

    def apart(self, logits: Sequence[Tensor]) -> Apart:
        """How far that is from the live adapter."""
        return self.between(self.logits, logits)

    def between(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Apart:
        """How far two models' answers are from each other."""
        cut = len(self.prompts)
        rows = compare(first[cut:], second[cut:]) if self.rows else None
        return Apart(compare(first[:cut], second[:cut]), rows)


def listen(tuned: Tuned) -> Live:
    """Ask the live model."""
    asked = [Asked(ids) for ids in prompts(tuned.tokenizer, tuned.renderer)]
    unheard = Live(asked, own_rows(tuned), tuned.head, ())
    return dataclasses.replace(unheard, logits=unheard.ask(tuned.model))
