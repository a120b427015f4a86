import pytest

from tunesmith.evaluate.metrics import chrf

ROWS = [  # prediction, reference, sentence score by sacreBLEU 2.x with its defaults, over 100
    ("The cat sat on the mat.", "A cat is on the mat!", 0.48756561729992),
    ("he", "hello there", 0.18716577540107),
    ("订单还没到", "我的订单还没有到。", 0.30909482540165),
    ("", "x", 0.0),
    ("a bc d", "abcd", 1.0),
    ("Hello world, this is it", "Goodbye", 0.07092198581560),
]
CORPUS = 0.30038888619510  # of the same rows


@pytest.mark.parametrize(("prediction", "reference", "expected"), ROWS)
def test_a_row_scores_as_sacrebleu_says(prediction, reference, expected):
    assert chrf.score([prediction], [reference]).value == pytest.approx(expected, abs=1e-6)


def test_rows_together_score_as_sacrebleu_says():
    assert chrf.score([row[0] for row in ROWS], [row[1] for row in ROWS]).value == pytest.approx(CORPUS, abs=1e-6)


def test_suits_free_text_only():
    assert chrf.suits(["A sentence.", "Another one."])
    assert not chrf.suits(["yes", "no"] * 4)
    assert not chrf.suits(["{}", "[]"])
