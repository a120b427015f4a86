"""What takes a while, said on stderr. Apart from the progress bar, whose library `--help` need not wait for."""

import sys


def tell(sentence: str) -> None:
    """One line, at once."""
    print(f"… {sentence}", file=sys.stderr, flush=True)
