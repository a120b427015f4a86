"""Answers that are labels: which there are, how often, and which of them are one label written in two ways."""

import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tunesmith.data.look.places import Finding, Places, count

LONGEST = 60  # characters; longer answers are no labels
MOST = 20_000  # different answers; with more of them they are no labels, and none is counted any longer
SAME = 4  # rows a label, on the average, from which short answers are taken for labels
LONG_SHARE = 0.01  # of the rows may have a longer answer
SHORT = 2  # characters of an answer that is suspicious where it is rare among long ones
RARE = 0.02  # share of the rows
ONE_LETTER = 5  # letters from which a label may be another one's misspelling
UNEVEN = 10  # times as many rows as the rarest label
MOSTLY = 0.75  # of the rows have one label
NAMED = 10
ENDS = " .,;:!?。、"


@dataclass(slots=True)
class Answers:
    """Last answers of a file's rows, counted while they pass; memory is bounded by `MOST`."""

    rows: int = 0
    others: int = 0  # rows of raw text, with tool calls or without an answer of text
    long: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    given_up: bool = False
    lengths: Counter[int] = field(default_factory=Counter)  # characters, up to the length at which nothing changes any more
    short: Places = field(default_factory=Places)

    def add(self, row: int, line: int, answer: str | None) -> None:
        """`answer`: None where the row has none of plain text."""
        self.rows += 1
        if answer is None:
            self.others += 1
            return
        self.lengths[min(len(answer), 20 * SHORT)] += 1
        if len(answer.strip()) <= SHORT:
            self.short.add(row, line)
        if len(answer) > LONGEST or answer[:1] in ("{", "["):
            self.long += 1
        elif not self.given_up:
            self.counts[answer] += 1
            if len(self.counts) > MOST:
                self.given_up = True
                self.counts.clear()

    def labels(self, known: bool = False) -> Counter[str]:
        """Each label's rows; empty where the answers are none. `known`: the format says that they are labels."""
        if not self.counts or self.others or self.given_up:
            return Counter()
        few = self.long <= LONG_SHARE * self.rows and 2 <= len(self.counts) <= self.rows / SAME
        return self.counts if known or few else Counter()


def findings(answers: Answers, known: bool = False) -> list[Finding]:
    """What is worth saying of a file's answers."""
    counts = answers.labels(known)
    return _labels(counts) if counts else _short(answers)


def alike(counts: Counter[str]) -> list[list[str]]:
    """Labels that are one label but for case, spaces, width and punctuation at the end; the most frequent first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label, _ in counts.most_common():
        groups[_key(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def one_letter_apart(counts: Counter[str]) -> list[tuple[str, str]]:
    """(rarer, more frequent) of labels with five letters or more that one letter, or two swapped, tells apart.

    Digits are no misspellings: `level_1` and `level_2` are two labels.
    """
    keys: dict[str, str] = {}
    for label, _ in counts.most_common():
        keys.setdefault(_key(label), label)
    shortened: dict[str, list[str]] = defaultdict(list)
    pairs: dict[tuple[str, str], None] = {}
    for key, label in keys.items():  # the more frequent label of a pair comes first
        if sum(character.isalpha() for character in key) < ONE_LETTER:
            continue
        for form in {key, *(key[:at] + key[at + 1 :] for at in range(len(key)))}:
            for other in shortened[form]:
                if _misspelt(key, other):
                    pairs[label, keys[other]] = None
            shortened[form].append(key)
    rarer = {rare for rare, _ in pairs}
    pairs = {pair: None for pair in pairs if pair[1] not in rarer}  # two misspellings of one label are each beside that one
    return sorted(pairs, key=lambda pair: counts[pair[0]] / counts[pair[1]])


def beginnings(counts: Counter[str]) -> list[tuple[str, str]]:
    """(part, whole) where a label of three letters or more is cut off inside a word of another one: `neg` and `negative`.

    One letter more is no beginning but a misspelling, or a plural.
    """
    keys = {_key(label): label for label, _ in reversed(counts.most_common())}
    ordered, pairs = sorted(keys), []
    for at, key in enumerate(ordered):
        if len(key) < 3 or not key.isalpha() or not key.isascii():
            continue
        for longer in ordered[at + 1 :]:
            if not longer.startswith(key):
                break
            if longer.isalpha() and len(longer) > len(key) + 1:
                pairs.append((keys[key], keys[longer]))
    return pairs


def _labels(counts: Counter[str]) -> list[Finding]:
    total = counts.total()
    shown = ", ".join(f"{label!r} {number:,}" for label, number in counts.most_common(NAMED))
    said = [f"the answers are labels, {len(counts):,} different: {shown}" + (" ..." if len(counts) > NAMED else "")]
    (most, rows), *others = counts.most_common()
    if others and (rows >= UNEVEN * others[-1][1] or rows >= MOSTLY * total):
        said.append(
            f"classes are uneven: {most!r} has {rows / total:.0%} of the rows, so that always answering it is right that often; "
            f"the rarest, {others[-1][0]!r}, has {count(others[-1][1], 'row')}"
        )
    for group in alike(counts)[: 2 * NAMED]:
        how = ", ".join(f"{label!r} {counts[label]:,}" for label in group)
        said.append(f"labels that differ in case, spaces, width or end punctuation only, each learned as a class of its own: {how}")
    if short := beginnings(counts):
        how = ", ".join(f"{part!r} {counts[part]:,} and {whole!r} {counts[whole]:,}" for part, whole in short[:NAMED])
        said.append(f"labels that begin another one, perhaps shortened: {how}" + (" ..." if len(short) > NAMED else ""))
    if pairs := one_letter_apart(counts):
        how = ", ".join(f"{rare!r} {counts[rare]:,} and {often!r} {counts[often]:,}" for rare, often in pairs[:NAMED])
        said.append(f"labels one letter apart, perhaps misspelt: {how}" + (" ..." if len(pairs) > NAMED else ""))
    if once := [label for label, number in counts.items() if number == 1]:
        named = ", ".join(map(repr, once[:NAMED])) + (" ..." if len(once) > NAMED else "")
        said.append(f"{count(len(once), 'label')} with one row only: {named}")
    return [Finding(sentence) for sentence in said]


def _short(answers: Answers) -> list[Finding]:
    """Very short answers among long ones are often leftovers."""
    told = answers.rows - answers.others
    half, median = (told + 1) // 2, 0
    for length in sorted(answers.lengths):
        half -= answers.lengths[length]
        if half <= 0:
            median = length
            break
    if median < 20 * SHORT or not 0 < answers.short.count <= max(1, RARE * told):
        return []
    return [Finding(f"{count(answers.short.count, 'answer')} of {SHORT} characters or fewer among long ones", answers.short)]


def _key(label: str) -> str:
    key = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return key.rstrip(ENDS) or key


def _misspelt(a: str, b: str) -> bool:
    """Whether one letter more, less or another one, or two neighbours swapped, lead from a to b."""
    if len(a) > len(b):
        a, b = b, a
    start = 0
    while start < len(a) and a[start] == b[start]:
        start += 1
    rest_a, rest_b = a[start:], b[start:]
    if len(a) < len(b):
        return rest_a == rest_b[1:] and not rest_b[0].isdigit()
    if rest_a[1:] == rest_b[1:]:
        return not (rest_a[:1].isdigit() or rest_b[:1].isdigit())
    return rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:] and not any(map(str.isdigit, rest_a[:2]))
