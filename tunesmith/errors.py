"""The two ways in which a verb stops for a reason that the user should read.

A message says what is wrong, where (file:line, key, tensor) and what to do. It is printed without a traceback.
"""


class UserError(Exception):
    """Something the user can mend: a flag, a setting, data, a model, memory. Exit code 2."""

    exit_code = 2

    def __init__(self, *problems: str):
        self.problems = problems  # all misfits at once, one a line
        super().__init__("\n".join(problems))


class ProofFailed(UserError):
    """A gate that the user set, or a proof of our own, did not hold. Exit code 3."""

    exit_code = 3


class Interrupted(Exception):
    """Ctrl-C (130) or SIGTERM (143); raised once everything worth keeping has been saved."""

    def __init__(self, exit_code: int, message: str):
        self.exit_code = exit_code
        super().__init__(message)
