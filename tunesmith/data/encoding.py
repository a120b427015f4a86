"""Bytes that are not UTF-8: which encoding they were probably written in.

A guess is only ever shown to the user, never used to load rows: text decoded with the wrong table trains without an
error and is unreadable afterwards.
"""

import re

# The commonest characters of running text in each language; a right decoding is full of them, a wrong one is not.
SIMPLIFIED = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没"
    "日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长很送吃菜味店快"
)
TRADITIONAL = (
    "的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可裡後小麼心多天而能好都然沒"
    "日於起還發成事只作當想看文無開手用主行方又如前所本見經頭面公同三已老從動兩長請與使更"
)
KOREAN = "이다는을의에가하고로지기은도사한를서어나리자대수있그것들해인아시라정만일게과제스부면거니와보여주전"

CANDIDATES = {
    "GB18030": ("gb18030", set(SIMPLIFIED + "，。、！？：；“”（）")),
    "Big5": ("big5", set(TRADITIONAL + "，。、！？：；「」（）")),
    "Shift-JIS": ("cp932", {chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD))} | set("。、「」ー")),
    "EUC-JP": ("euc_jp", {chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FD))} | set("。、「」ー")),
    "EUC-KR": ("euc_kr", set(KOREAN)),
    "Windows-1251": ("cp1251", set("оеаинтсрвлкмдпуяыьгзбчйхжОЕАИНТСРВ")),
    "Windows-1252": ("cp1252", set("éèêëàâäáãåçñöôóòõüûùúíìîïßæøÉÈÀÂÄÁÇÑÖÔÓÜŒœ’‘“”–—…€«»°£")),
}
ICONV = {"Shift-JIS": "CP932", "Windows-1251": "CP1251", "Windows-1252": "CP1252"}


def guess(raw: bytes) -> str | None:
    """The likeliest encoding's name of bytes that are not UTF-8, or None where nothing fits.

    The score is the share of common characters among those that are not ASCII.
    """
    best, best_score = None, 0.15
    for name, (codec, common) in CANDIDATES.items():
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError:
            continue
        foreign = [character for character in text if ord(character) > 127]
        if name == "Windows-1252" and len(foreign) > 2 * len(re.findall(r"[^\x00-\x7f]+", text)):
            continue  # accents stand alone between ASCII letters; long runs are another script
        score = sum(character in common for character in foreign) / max(1, len(foreign))
        if score > best_score:
            best, best_score = name, score
    return best


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
