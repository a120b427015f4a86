from collections import Counter

from tunesmith.data.look.histogram import bar, bins, draw, edges


def test_borders_double_and_hold_the_mark():
    assert edges(1, 1024) == [0, 16]
    assert edges(100, 1024) == [0, 16, 32, 64, 128]
    assert edges(1500, 1024) == [0, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert edges(400, 300) == [0, 16, 32, 64, 128, 256, 300, 512]


def test_a_length_on_a_border_is_below_it():
    lengths = Counter([1, 16, 17, 64, 65, 300])
    borders = edges(300, 100)
    assert bins(lengths, borders) == [2, 1, 1, 1, 0, 0, 1]
    assert sum(bins(lengths, borders)) == 6


def test_bars_are_exact_to_an_eighth_and_nothing_is_lost():
    assert bar(1, 4) == "████" and bar(0.5, 1) == "▌" and bar(0, 4) == ""
    assert bar(0.0001, 10) == "▏" and bar(0.0001, 10, blocks=False) == "#"


def test_the_drawing():
    lines = draw([1, 0, 4, 3], [0, 16, 32, 64, 128], 64, width=8)
    assert lines == [
        "  1–16 ██       1  12.5%",
        " 17–32          0   0.0%",
        " 33–64 ████████ 4  50.0%",
        "       ╌╌╌╌╌╌╌╌ data.max_length 64",
        "65–128 ██████   3  37.5%",
    ]
    assert draw([0, 2], [0, 16, 32], 1024, width=4) == ["17–32 ████ 2 100.0%", "      ╌╌╌╌ data.max_length 1,024"]
    assert draw([2], [0, 16], 16, width=4, blocks=False) == ["1-16 #### 2 100.0%", "     ---- data.max_length 16"]
