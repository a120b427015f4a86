"""The subset of Go's template language, on what its documentation says of each part."""

import pytest

from tunesmith.export.go_template import collated, quoted, render

ITEMS = {"Messages": [{"Role": "user", "Content": "a"}, {"Role": "assistant", "Content": "b"}], "System": "s", "Empty": ""}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{ .System }}|{{ .Missing }}|{{ $.System }}", "s||s"),
        ('{{ "a \\"quoted\\"\\n{{ text" }}', 'a "quoted"\n{{ text'),
        ("{{ if .System }}yes{{ else }}no{{ end }}{{ if .Empty }}yes{{ else }}no{{ end }}", "yesno"),
        ('{{ if eq .System "x" }}1{{ else if eq .System "s" }}2{{ else }}3{{ end }}', "2"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ .Role }};{{ end }}", "0auser;1bassistant;"),
        ("{{ range .Messages }}{{ .Content }}{{ $.System }}{{ end }}", "asbs"),
        ("{{ range $m := .Messages }}{{ $m.Content }}{{ end }}", "ab"),
        (
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ if $last }}{{ .Content }}{{ end }}{{ end }}",
            "b",
        ),
        ('{{ if and .System (ne .System "x") (not .Empty) }}all{{ end }}{{ if or .Empty .System }}one{{ end }}', "allone"),
        ('{{ eq .System "a" "s" }}{{ len .Messages }}', "true2"),
        ("{{ $v := .System }}{{ $v }}{{ if .System }}{{ $v := .Empty }}[{{ $v }}]{{ end }}{{ $v }}", "s[]s"),
        ("a \n {{- .System -}} \n b", "asb"),
        ("a {{/* a comment */}} b {{- /* and one that trims */ -}} c", "a  bc"),
        ("{{-3 }}", "-3"),
    ],
)
def test_what_a_template_gives(template: str, text: str) -> None:
    assert render(template, ITEMS) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{ if .System }}",
        "{{ end }}",
        "{{ else }}",
        "{{ printf .System }}",
        "{{ $unknown }}",
        "{{ }}",
        "{{ len (slice .Messages }}",
        "{{ .A .B }}",
    ],
)
def test_what_is_outside_of_the_subset_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        render(template, ITEMS)


def test_messages_of_one_role_go_together_and_system_prompts_beside() -> None:
    talk = [
        {"role": role, "content": text}
        for role, text in [("system", "1"), ("system", "2"), ("user", "3"), ("user", "4"), ("assistant", "5")]
    ]
    assert collated(talk) == {
        "System": "1\n\n2",
        "Messages": [{"Role": "system", "Content": "1\n\n2"}, {"Role": "user", "Content": "3\n\n4"}, {"Role": "assistant", "Content": "5"}],
        "Response": "",
    }


def test_any_text_can_be_said_as_a_string() -> None:
    text = 'tab\t "quotes" {{ .System }} \\ back\nslash """'
    assert render("{{ " + quoted(text) + " }}", {}) == text
