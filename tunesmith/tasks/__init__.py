"""What is predicted: a task is one file with `HEAD`, `METRICS` and `misfit`, one line here, one test and one page.

Tasks with a head also say what it tells apart (`labels`, `classes`), what is fed and where labels stand (`render`), and what
predicted labels mean (`decode`).
"""

from types import ModuleType

from tunesmith.tasks import classify, generate, tag, text

TASKS: dict[str, ModuleType] = {
    "generate": generate,
    "text": text,
    "classify": classify,
    "tag": tag,
}
