from tunesmith.data.look.places import Finding, Places, count, places


def test_neighbouring_rows_are_one_run_whatever_lines_they_take():
    found = places([(1, 2), (2, 12), (3, 22), (7, 62), (9, 82), (10, 92)])
    assert (found.count, found.ranges(), found.said()) == (6, "2-22, 62, 82-92", "lines 2-22, 62, 82-92")
    assert found.said(2) == "lines 2-22, 62 ..." and found.said(3) == "lines 2-22, 62, 82-92"


def test_a_row_counts_once_and_one_row_is_one_line():
    found = Places()
    found.add(5, 40)
    found.add(5, 40)
    assert (found.count, found.said()) == (1, "line 40")
    assert Places().ranges() == ""


def test_a_run_takes_sixteen_bytes():
    found = places((row, row) for row in range(100_000))
    assert len(found.firsts) == len(found.lasts) == 1 and found.firsts.itemsize == 8


def test_findings_are_sentences():
    assert Finding("nothing else").said() == "nothing else"
    assert Finding("2 rows odd", places([(1, 1), (4, 4)]), "; mend them").said(1) == "2 rows odd: lines 1 ...; mend them"
    assert (count(1, "row"), count(1200, "row")) == ("1 row", "1,200 rows")
