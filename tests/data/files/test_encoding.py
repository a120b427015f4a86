import pytest

from tunesmith.data.files.encoding import ENCODINGS, WIDER, Guess, cure, guess, named, unmangle

TEXTS = {
    "GB18030": "最后五分钟订的，卖家特别好接单了，谢谢。这家店的菜很好吃，我们都喜欢，下次还会来的。",
    "Big5": "這家店的菜很好吃，我們都喜歡，下次還會來的。請你看看這個，不要忘了時間，謝謝你們。",
    "Shift-JIS": "これはペンです。この店の料理はとてもおいしいので、また来たいと思います。",
    "EUC-KR": "이 가게의 음식은 아주 맛있어서 다시 오고 싶습니다. 우리는 모두 그것을 좋아하고 있다.",
    "Windows-1252": "Le garçon a été très content d’être là, même après l’été à Orléans où il a vécu.",
    "Windows-1251": "Это очень хороший ресторан, мы обязательно придём сюда ещё раз.",
}
CODECS = {
    "GB18030": "gb18030",
    "Big5": "big5",
    "Shift-JIS": "cp932",
    "EUC-KR": "euc_kr",
    "Windows-1252": "cp1252",
    "Windows-1251": "cp1251",
}


def likeliest(raw: bytes) -> Guess:
    found = guess(raw)
    assert found is not None
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_guess_names_the_encoding_that_the_text_was_written_in(name):
    found = likeliest(TEXTS[name].encode(CODECS[name]))
    assert (found.name, found.certain) == (name, True)


def test_guess_of_noise_is_nothing():
    assert guess(bytes(number * number % 251 for number in range(400))) is None


def test_cure_is_a_command_with_a_name_that_iconv_knows():
    assert cure("my file.csv", "Shift-JIS").startswith("iconv -f CP932 -t UTF-8 'my file.csv'")


@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_unmangle_restores_text_decoded_with_the_wrong_table(codec):
    assert unmangle("naïve café".encode().decode(codec)) == "naïve café"


@pytest.mark.parametrize("text", ["plain", "naïve café", "价格", "x\u00a0y"])
def test_unmangle_leaves_right_text_alone(text):
    assert unmangle(text) is None


def test_several_languages_of_one_encoding_and_its_neighbours():
    for codec, text in {
        "cp1252": "Größe und Maß für 20 Schüler; la taille des élèves a été mesurée; ¿cuántos niños están aquí?",
        "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy; zażółcić wszystkie możliwe błędy, proszę, będę później",
        "cp1254": "İstanbul'da yaşayan çocuğun adı Ayşe, babasının işi güç",
        "koi8_r": "Это очень хороший ресторан",
        "cp1253": "Η γρήγορη αλεπού πηδάει πάνω από το σκυλί",
        "mac_roman": "Le garçon a été très content, même après l’été",
        "euc_jp": "これはペンです。この店の料理はとてもおいしい。",
    }.items():
        raw = text.encode(codec)
        assert raw.decode(likeliest(raw).codec) == text


@pytest.mark.parametrize("text", ["café", "Zürich"])
def test_one_foreign_word_is_enough_where_nothing_else_fits(text):
    found = likeliest(f'{{"prompt": "where is {text} today", "completion": "there"}}\n'.encode("cp1252"))
    assert (found.name, found.certain) == ("Windows-1252", True)


def test_encodings_that_are_only_named_are_never_certain():
    found = likeliest("Это очень хороший ресторан, мы обязательно придём сюда ещё раз.".encode("koi8_r") * 9)
    assert (found.name, found.certain) == ("KOI8-R", False)


def test_the_names_that_are_said_are_taken():
    for name, (codec, _, _) in ENCODINGS.items():
        assert named(name) == named(name.lower()) == codec
        "".encode(codec)
    for wider in WIDER.values():
        named(wider)
    assert (named("UTF8"), named("latin-1"), named("gbk")) == ("utf-8", "iso8859-1", "gbk")
    for wrong, near in {
        "shift_jix": "shift",
        "rot13": "no encoding of text files",
        "idna": "no encoding of text",
        "gb-18030x": "18030",
    }.items():
        with pytest.raises(LookupError, match=near):
            named(wrong)
