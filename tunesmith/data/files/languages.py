"""How common each character is in the languages that an encoding is used for: what tells one decoding of bytes from another.

A language is a few strings of characters in the order of how often they come, each with its share of running text. Within
a string the frequency falls as in Zipf's law. Characters of none of the strings share what is left by the order of the
encoding's own table, whose first part holds the common ones.
"""

import math
from dataclasses import dataclass

HANZI = (
    "的一是不了在人有我他这和个以们中大可用为能好时要来生到送国地出就说也子年会你对度方过吃并使物最都机面提家更工作没文将法"
    "据量它种自理其餐通太道力等间给化解后些应高计性新进果重程加题电本现业天务常体问需关保美快味特得什全之算而户或同意建经少"
    "开实表外公品式确里合然比因包语技供您产类两次菜信字创车何与主单从所术气服别入系助感长事相句心客水例网活结员制该器变话前"
    "错着件任肉此者三影明情平列回想代利及但市决安日正速非设色无写习目区第手看元打被部饭名交去内样智真慢根每场联词知当统持处"
    "标起价期响取帮总改世型差述选海让完导接求西组商格教难做效质米直那界空位资序素造收再战形态食示测放科达口找展强只受基源线"
    "管节料她识马括评输够超容金模才东花吗风流言社运司原项议支准己乐月图请传份论拉游步适试注环减推装值怎且队健满哪存尔义油领店"
    "光查星半集由符订优描路视首致功买向共已调政二级亚身越英复条增整觉头排师率块反卖热历民先认指阳立音带医易备域欢择城记老候始"
    "房足望片育约神像香女布构索南费较山编消引则积见友答简许书钱互团策百士喜五病参未儿军红研必观号白命换案至豆火象告获营周印"
)
TRADITIONAL_OF = str.maketrans(
    "这个们为时来国说会对过并机没将据种间给后应计进题电现业务体问关实经开东网员术气别长结该变话错着单从类两语车与产师创里确"
    "几处标价响帮总选让导组难质资态达线节料识马评输够风运项议乐图请传论适试环减装队满义领优视买调级亚复条觉头热历认阳带医"
    "备择记约构较编则积见简许书钱团参儿军红研观号换获营动学发样内决习设写无场联词当统续战边张万费报远办点尔强听块阶",
    "這個們為時來國說會對過並機沒將據種間給後應計進題電現業務體問關實經開東網員術氣別長結該變話錯著單從類兩語車與產師創裡確"
    "幾處標價響幫總選讓導組難質資態達線節料識馬評輸夠風運項議樂圖請傳論適試環減裝隊滿義領優視買調級亞復條覺頭熱歷認陽帶醫"
    "備擇記約構較編則積見簡許書錢團參兒軍紅研觀號換獲營動學發樣內決習設寫無場聯詞當統續戰邊張萬費報遠辦點爾強聽塊階",
)
KANJI = (
    "日一人年大会国本中出時行見月分後前生上間事手自者思今言気何来場入作私下的体対合同用方小田業部定話明新高理動目学文社度部"
    "家地物全実数力発表現関代成品店料主性通要長心最教名水書立使取女多内外回食問意法不必正処信感知世開始話化機能員少初味無考"
    "変次点当持電子車道語金題楽友確三二十百千万円週朝夜早昨先明毎海山川町駅旅由有加切引起送受付込選設連続読買売待帰着止安元"
)
HIRAGANA = (
    "のいにたとしてなるをはがでれすかまらこりうさもきおくよあえけみちせめやわろどだんじっつほねばひそふむ"
    "へびげべばごぎぐぶべぼゆょゃゅずぜざぞぬづ"
)
KATAKANA = (
    "ーンスルトクリラアイドタシフレッグジマムロメコプテカデセサキナバウパオビエブダミポチィニボケハモノペツネワソホヤガゴズベユヨゼギヒヘ"
)
HANGUL = (
    "이다는을의에가하고로지기은도사한를서어나리자대수있그것들해인아시라정만일게과제스부면거니와보여주전장성상유들안습합세요구"
    "각우마용비원무공동음식중계소문미화조신때않없같많적했되된될않연오진방내경야실분생저관국학발전행모차말물건입러으까지드트"
    "데르크파타터프레토버페카코포테추청천초최치체처참책충출높놓넣너남날년녀노누느니단달당대더데독돌됩두둘뒤떤또람랑래력"
    "련료류률른름릴림립막맞매머먼메며명몇목못무바반받밖밤배번법별병본봤북불붙빠빼뿐산살색생선설섬속손송쇄순술쉽승심쓰씨악"
    "알앞약양언얼업없었였영예온올완왔외운울월위육으읽임있잘잠재절점접좋죠준줄즐증직질집찾채척크큰클키탁태택터통투특팀평표품"
    "풍필함항해했향험현형호확환활황회효후히험겠격결곳교권귀규그극근글금급길김깊깨께끝끼난남냐네"
)
CJK_MARKS = "，。、！？：；“”（）《》…—‘’「」『』·【】～"
JAPANESE_MARKS = "。、「」ー・（）！？『』：～…"
RUSSIAN = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфёъ"
UKRAINIAN = "оанивтіреслкумдпзьяйбгчюцжхєїшщфґ"
MARKS = "’“”–—…«»‘‚„°•€©®™´·"  # of Latin, Greek and Cyrillic print

# Latin letters beyond ASCII in the order of how often they come. One language has few of them: that is what tells
# Windows-1252 from Windows-1250, in which the same bytes are other letters.
WESTERN_LETTERS = {
    "English": "’“”–é—…‘",
    "French": "éàèê’çùâîôûïëœ«»",
    "German": "üäößé„“–",
    "Spanish": "óíáéñú¿¡ü",
    "Portuguese": "ãçéáóíêõâúôà",
    "Italian": "àèòìù’é",
    "Scandinavian": "åäöøæé",
    "Dutch": "ëéïèöüó",
    "Icelandic": "áíðþöéúýóæ",
    "Catalan": "àóéèíòçúï·ü",
    "Finnish": "äöå",
}
CENTRAL_LETTERS = {
    "Polish": "łąężśćóńź",
    "Czech": "íáěéčřšžýůúňťďó",
    "Slovak": "áíéčšžýúľťôňóďäĺŕ",
    "Hungarian": "áéöóőüíúű",
    "Romanian": "ăîâșțşţ",
    "Croatian": "čšžćđ",
}
TURKISH_LETTERS = {"Turkish": "ıüşöğçİâî"}
BALTIC_LETTERS = {"Latvian": "āēīšžļņģķčū", "Lithuanian": "ėšžųįąčūę"}
GREEK_LETTERS = "αοιετσηνρκπμλυςήάίόδέγύχωθφβώζξψϊΐ"
HEBREW_LETTERS = "יוהלארמתבשנםדעקפחכגצןזטסךףץ"
ARABIC_LETTERS = "اليمنروتبعدهكسفقحجأشصىطخضةئزذءغثظإآؤ"

FLOOR = math.log(1e-7)  # a character that the language does not have
RUN_BEGINS = math.log(0.05)
ASCII = math.log(1 / 60)


@dataclass(frozen=True, slots=True)
class Language:
    """The logarithm of each character's frequency, and how its letters stand beside ASCII ones."""

    common: dict[str, float]
    rest: dict[str, float]  # block of the encoding's table -> log frequency of each character in it; empty: FLOOR
    among_ascii: bool  # its letters stand in words of ASCII letters, singly
    goes_on: float  # log chance that another such character follows
    beside_ascii: float = 0.0  # log chance of standing directly beside an ASCII letter, where they are not of one word


def _ranked(shares: list[tuple[str, float]]) -> dict[str, float]:
    """Log frequencies of characters given in the order of frequency; `shares` are of the whole."""
    found: dict[str, float] = {}
    for characters, share in shares:
        unique = list(dict.fromkeys(characters))
        flat = len(unique) / 30  # the curve of a long list begins flatter
        weights = [1 / (rank + 1 + flat) for rank in range(len(unique))]
        for character, weight in zip(unique, weights, strict=True):
            found.setdefault(character, math.log(share * weight / sum(weights)))
    return found


def _dense(shares: list[tuple[str, float]], rest: dict[str, tuple[float, int]], goes_on: float, beside: float = 0.1) -> Language:
    """A language in a script of its own. `rest`: block of the encoding's table -> (share, characters in it)."""
    blocks = {block: math.log(share / count) for block, (share, count) in rest.items()}
    return Language(_ranked(shares), blocks, among_ascii=False, goes_on=math.log(goes_on), beside_ascii=math.log(beside))


def _alphabet(letters: str) -> Language:
    """A language of a small alphabet that is not Latin."""
    return _dense([(letters, 0.9), (MARKS, 0.05)], {}, 0.8, beside=0.0001)


def _latin(letters: str) -> Language:
    """A language of Latin letters, of which only these are beyond ASCII."""
    marks = "".join(mark for mark in MARKS if mark not in letters)
    return Language(
        _ranked([(letters, 0.9), (marks, 0.03), ("éèáíóúäöüñçàøåšžč", 0.01), ("§£½¼¹²³±×ªº¡¿", 0.003)]),
        {},
        among_ascii=True,
        goes_on=math.log(0.06),
    )


CHINESE = _dense(
    [(HANZI, 0.7), (CJK_MARKS, 0.15)],
    {"first": (0.12, 3300), "second": (0.006, 3008), "symbols": (0.01, 600), "rest": (0.002, 15000)},
    0.9,
)
TAIWANESE = _dense(
    [(HANZI.translate(TRADITIONAL_OF), 0.7), (CJK_MARKS, 0.15)],
    {"first": (0.12, 4900), "second": (0.006, 7652), "symbols": (0.01, 400), "rest": (0.0005, 3000)},
    0.9,
)
JAPANESE = _dense(
    [(HIRAGANA, 0.45), (KATAKANA, 0.15), (JAPANESE_MARKS, 0.1), (KANJI, 0.17)],
    {"first": (0.11, 2800), "second": (0.003, 3390), "symbols": (0.01, 500), "rest": (0.001, 400)},
    0.92,
)
KOREAN = _dense([(HANGUL, 0.9)], {"first": (0.08, 2000), "second": (0.003, 4888), "symbols": (0.01, 900), "rest": (0.0005, 8800)}, 0.75)
# The last of each is a text in several of the languages.
WESTERN = [_latin(letters) for letters in [*WESTERN_LETTERS.values(), "".join(WESTERN_LETTERS.values())]]
CENTRAL = [_latin(letters) for letters in [*CENTRAL_LETTERS.values(), "".join(CENTRAL_LETTERS.values())]]
TURKISH = [_latin(letters) for letters in TURKISH_LETTERS.values()]
BALTIC = [_latin(letters) for letters in BALTIC_LETTERS.values()]
CYRILLIC = [_alphabet(RUSSIAN), _alphabet(UKRAINIAN)]
GREEK = _alphabet(GREEK_LETTERS)
HEBREW = _alphabet(HEBREW_LETTERS)
ARABIC = _alphabet(ARABIC_LETTERS)
