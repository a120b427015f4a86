"""A histogram of lengths with doubling bins, and a bar of it for a terminal."""

import itertools
from collections.abc import Mapping, Sequence

FIRST = 16  # the upper border of the first bin
EIGHTHS = " ▏▎▍▌▋▊▉█"


def edges(longest: int, mark: int) -> list[int]:
    """Borders of the bins, bin n holding lengths over edges[n] up to edges[n + 1]: 0, 16, 32, 64 ... and `mark` among them."""
    borders = [0, FIRST]
    while borders[-1] < longest:
        borders.append(2 * borders[-1])
    return sorted({*borders, mark}) if borders[-1] > mark else borders


def bins(lengths: Mapping[int, int], borders: Sequence[int]) -> list[int]:
    """How many lengths fall into each bin. `lengths`: how often each one occurs; those over the last border go into the last bin."""
    counts = [0] * (len(borders) - 1)
    for length, number in lengths.items():
        place = next((n for n, border in enumerate(borders[1:]) if length <= border), len(counts) - 1)
        counts[place] += number
    return counts


def draw(counts: Sequence[int], borders: Sequence[int], mark: int, width: int = 40, blocks: bool = True) -> list[str]:
    """One line a bin, its bar at most `width` long, its rows and their share; a rule stands where `mark` is.

    `blocks`: with bars of an eighth's precision, which an ASCII terminal cannot show.
    """
    total, most = max(1, sum(counts)), max(1, max(counts, default=1))
    first = next((n for n, number in enumerate(counts) if number), 0)
    last = max((n for n, number in enumerate(counts) if number), default=0)
    names = [f"{low + 1:,}{'–' if blocks else '-'}{high:,}" for low, high in itertools.pairwise(borders)]
    wide = max(map(len, names[first : last + 1]))
    digits = len(f"{most:,}")
    lines = []
    for n in range(first, last + 1):
        drawn = bar(counts[n] / most, width, blocks)
        lines.append(f"{names[n]:>{wide}} {drawn:<{width}} {counts[n]:>{digits},} {counts[n] / total:>6.1%}")
        if borders[n + 1] == mark or (n == last and borders[n + 1] < mark):
            rule = ("╌" if blocks else "-") * width
            lines.append(f"{'':>{wide}} {rule} data.max_length {mark:,}")
    return lines


def bar(share: float, width: int, blocks: bool = True) -> str:
    """A bar of `share` of the width; anything above nothing is seen."""
    if not blocks:
        return "#" * max(round(share * width), share > 0)
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
