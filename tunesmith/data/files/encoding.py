"""Bytes that are not UTF-8: which encoding they were written in, and how certain that is.

Every encoding that can decode the bytes explains them as text of a language; the guess is the explanation under which the
bytes are the likeliest, and its certainty the distance to the next one whose text is another. Text decoded with the wrong
table trains without an error and is unreadable afterwards, so what is not certain is only named, never read.
"""

import codecs
import difflib
import encodings.aliases
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.data.files import languages
from tunesmith.data.files.languages import ASCII, FLOOR, RUN_BEGINS, Language

# name that is shown and taken: codec, log chance beforehand, whether a file is read so without being told
ENCODINGS: dict[str, tuple[str, float, bool]] = {
    "GB18030": ("gb18030", 0, True),
    "Windows-1252": ("cp1252", 0, True),
    "Big5": ("cp950", -1, True),
    "Shift-JIS": ("cp932", -1, True),
    "EUC-KR": ("cp949", -1, True),
    "Windows-1251": ("cp1251", -1, True),
    "EUC-JP": ("euc_jp", -3, True),
    "Big5-HKSCS": ("big5hkscs", -4, False),
    "Windows-1250": ("cp1250", -2, False),
    "Windows-1253": ("cp1253", -2, False),
    "Windows-1254": ("cp1254", -2, False),
    "Windows-1255": ("cp1255", -2, False),
    "Windows-1256": ("cp1256", -2, False),
    "Windows-1257": ("cp1257", -3, False),
    "KOI8-R": ("koi8_r", -3, False),
    "KOI8-U": ("koi8_u", -4, False),
    "IBM866": ("cp866", -3, False),
    "ISO-8859-2": ("iso8859_2", -3, False),
    "ISO-8859-5": ("iso8859_5", -4, False),
    "ISO-8859-7": ("iso8859_7", -3, False),
    "ISO-8859-15": ("iso8859_15", -4, False),
    "IBM850": ("cp850", -5, False),
    "Macintosh": ("mac_roman", -5, False),
}
BY_CHANCE = {"cp1252": 0, "cp1251": 1}  # characters of a line that may be valid UTF-8 all the same: "Ні" in Windows-1251
WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "Big5", "cp950": "Big5-HKSCS", "shift_jis": "Shift-JIS", "euc_kr": "EUC-KR"}
NO_FILES = {"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "unicode_escape", "raw_unicode_escape", "utf-7"}
ICONV = {"Shift-JIS": "CP932", "EUC-KR": "CP949", **{f"Windows-{page}": f"CP{page}" for page in range(1250, 1258)}}

# Blocks of the two-byte tables: first and last lead byte. The tables put common characters before rare ones.
BLOCKS = {
    "gb18030": {"symbols": (0xA1, 0xA9), "first": (0xB0, 0xD7), "second": (0xD8, 0xF7)},
    "cp950": {"symbols": (0xA1, 0xA3), "first": (0xA4, 0xC6), "second": (0xC9, 0xF9)},
    "big5hkscs": {"symbols": (0xA1, 0xA3), "first": (0xA4, 0xC6), "second": (0xC9, 0xF9)},
    "cp932": {"symbols": (0x81, 0x84), "first": (0x88, 0x97), "second": (0x98, 0xEA)},
    "euc_jp": {"symbols": (0xA1, 0xA8), "first": (0xB0, 0xCF), "second": (0xD0, 0xF4)},
    "cp949": {"symbols": (0xA1, 0xAC), "first": (0xB0, 0xC8), "second": (0xCA, 0xFD)},
}
WRITTEN_IN: dict[str, list[Language]] = {
    "gb18030": [languages.CHINESE],
    "cp950": [languages.TAIWANESE],
    "big5hkscs": [languages.TAIWANESE],
    "cp932": [languages.JAPANESE],
    "euc_jp": [languages.JAPANESE],
    "cp949": [languages.KOREAN],
    "cp1252": languages.WESTERN,
    "cp850": languages.WESTERN,
    "mac_roman": languages.WESTERN,
    "iso8859_15": languages.WESTERN,
    "cp1250": languages.CENTRAL,
    "iso8859_2": languages.CENTRAL,
    "cp1254": languages.TURKISH,
    "cp1257": languages.BALTIC,
    "cp1251": languages.CYRILLIC,
    "koi8_r": languages.CYRILLIC,
    "koi8_u": languages.CYRILLIC,
    "cp866": languages.CYRILLIC,
    "iso8859_5": languages.CYRILLIC,
    "cp1253": [languages.GREEK],
    "iso8859_7": [languages.GREEK],
    "cp1255": [languages.HEBREW],
    "cp1256": [languages.ARABIC],
}
LOW_TRAILS = {"gb18030", "euc_jp", "cp949"}  # here a second byte below 0xA1 means an extension of the old table
LOOKED_AT = 1 << 15  # bytes that decide; more add nothing
CERTAIN = 10.0  # natural logarithm of the odds against the next encoding, some 20,000 to 1
TEXT = 3.0  # the same against bytes that are no text
NOISE = math.log(1 / 128)  # bytes that are no text
RUN = re.compile("[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True)
class Guess:
    """An encoding by the name that `data.encoding` takes."""

    name: str
    codec: str
    odds: float  # natural logarithm, against the likeliest encoding that gives another text
    text: float  # natural logarithm of the odds against bytes that are no text

    @property
    def certain(self) -> bool:
        """Whether a file is read so without being told."""
        return ENCODINGS[self.name][2] and self.odds >= CERTAIN and self.text >= TEXT


def guess(raw: bytes) -> Guess | None:
    """The likeliest encoding of bytes that are not UTF-8, or None where all explain them worse than chance."""
    raw = raw[:LOOKED_AT]
    noise = RUN_BEGINS * len(re.findall(rb"[\x80-\xff]+", raw)) + sum((NOISE if byte > 127 else ASCII) for byte in raw)
    ranked = sorted(_explanations(raw), reverse=True)
    if not ranked or ranked[0][0] <= noise:
        return None
    best, _, name, text = ranked[0]
    others = [score for score, _, _, other in ranked[1:] if other != text]
    return Guess(name, ENCODINGS[name][0], best - max(others, default=-math.inf), best - noise)


def _explanations(raw: bytes) -> Iterator[tuple[float, int, str, str]]:
    """(log probability, order, name, text) of every encoding that can decode the bytes."""
    for order, (name, (codec, before, _)) in enumerate(ENCODINGS.items()):
        try:
            text = codecs.getincrementaldecoder(codec)().decode(raw, len(raw) < LOOKED_AT)
        except UnicodeDecodeError:
            continue
        yield before + max(_likelihood(text, codec, language) for language in WRITTEN_IN[codec]), -order, name, text


def _likelihood(text: str, codec: str, language: Language) -> float:
    known: dict[str, float] = {}
    total = 0.0
    beyond = 0
    for run in RUN.finditer(text):
        before, after = text[run.start() - 1 : run.start()], text[run.end() : run.end() + 1]
        characters = run.group()
        beyond += len(characters)
        total += RUN_BEGINS + language.goes_on * (len(characters) - 1)
        for character in characters:
            if character not in known:
                known[character] = _alone(character, codec, language)
            total += known[character]
        total += _in_place(before, characters, after, language)
    return total + ASCII * (len(text) - beyond)


def _alone(character: str, codec: str, language: Language) -> float:
    """The logarithm of a character's frequency."""
    found = language.common.get(character, language.common.get(character.lower()))
    if found is not None or not language.rest:
        return FLOOR if found is None else found
    raw = character.encode(codec)
    if len(raw) != 2 or (codec in LOW_TRAILS and raw[1] <= 0xA0):
        return language.rest["rest"]
    return language.rest[next((name for name, (first, last) in BLOCKS[codec].items() if first <= raw[0] <= last), "rest")]


def _in_place(before: str, characters: str, after: str, language: Language) -> float:
    """How well the characters stand together and beside their ASCII neighbours ("" at the ends of the text)."""
    total = 0.0
    if not language.among_ascii:
        beside = before.isalpha() + after.isalpha()
        total = language.beside_ascii * beside - (4 if beside == 2 and len(characters) == 1 else 0)
        if language.rest:
            return total  # a script without capitals
    previous = before
    for index, character in enumerate(characters):
        following = characters[index + 1] if index + 1 < len(characters) else after
        if character.isupper() and not previous.isupper():
            total -= 6 if previous.islower() else 2
        if language.among_ascii:
            if not character.isalpha() and character not in "’·" and previous.isalpha() and following.isalpha():
                total -= 3
            if character.isalpha() and not previous.isalpha() and not following.isalpha():
                total -= 2
        previous = character
    return total


def named(wanted: str) -> str:
    """The codec of an encoding that the user names. Raises LookupError with the nearest name."""
    for name, (codec, _, _) in ENCODINGS.items():
        if wanted.lower() == name.lower():
            return codec
    try:
        found = codecs.lookup(wanted)
        if found._is_text_encoding and found.name not in NO_FILES:  # type: ignore[attr-defined]
            return found.name
        reason = "is no encoding of text files"
    except LookupError:
        reason = "is no encoding that Python knows"
    known = {name.lower(): name for name in (*ENCODINGS, *encodings.aliases.aliases, *encodings.aliases.aliases.values())}
    near = difflib.get_close_matches(wanted.lower().replace("-", "_"), known, n=1) or difflib.get_close_matches(wanted.lower(), known, n=1)
    raise LookupError(
        f"{wanted!r} {reason}" + (f"; did you mean {known[near[0]]}?" if near else "") + "; known are such as utf-8, gb18030, shift-jis"
    )


def cure(name: str, encoding: str) -> str:
    """The command that converts the file to UTF-8."""
    return f"iconv -f {ICONV.get(encoding, encoding)} -t UTF-8 '{name}' > utf8_copy"


def unmangle(text: str) -> str | None:
    """The text as it was before it was decoded as Latin-1 or Windows-1252 by mistake, or None if it was not.

    UTF-8 is so regular that text which survives the way back was almost surely mangled.
    """
    for codec in ("latin-1", "cp1252"):
        try:
            restored = text.encode(codec).decode("utf-8")
        except UnicodeError:
            continue
        if restored != text:
            return restored
    return None
