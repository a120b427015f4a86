"""Chat templates of thirteen families as Ollama's: the tokens of every conversation are those of training."""

from typing import Any

import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.rendering.tokens import Marked
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError
from tunesmith.export import modelfile
from tunesmith.export.truth import CONVERSATIONS

# family -> where its system prompt goes; None: it takes none
PLACES: dict[str, str | None] = {**dict.fromkeys(TEMPLATES, "own"), "gemma-3": "first", "mistral-v3": "last", "mistral": None}


def of(family: str, template: str | None = None) -> tuple[Any, Renderer, str]:
    tokenizer = make_tokenizer(family, template)
    renderer = Renderer(tokenizer)
    found = modelfile.turns(renderer)
    return found, renderer, modelfile.template_of(found, tokenizer.bos_token if renderer.bos else "")


def ids_of(renderer: Renderer, template: str, talk: list[dict[str, Any]]) -> list[int]:
    return renderer.bos + renderer.encoder.encode([Marked(modelfile.rendered(template, talk))])[0]


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_tokens_are_those_of_training(family: str) -> None:
    found, renderer, template = of(family)
    assert (found.place if found.system is not None else None) == PLACES[family]
    compared = 0
    for talk in CONVERSATIONS:
        try:
            trained = renderer.prompt_ids(talk)
        except RowError:
            assert PLACES[family] is None and talk[0]["role"] == "system"
            continue
        assert ids_of(renderer, template, talk) == trained
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_that_is_begun_is_gone_on_with(family: str) -> None:
    """Ollama continues a last message of the assistant: nothing closes it, and no other is opened."""
    _, _, template = of(family)
    begun = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Bl"}]
    assert modelfile.rendered(template, begun).endswith("Bl")


def test_one_beginning_of_text() -> None:
    """Where the tokenizer puts it in front by itself, the template must not."""
    found, renderer, template = of("llama-3.2")
    assert renderer.bos and "<|begin_of_text|>" in found.head and "<|begin_of_text|>" not in template
    found, renderer, template = of("cohere2")
    assert not renderer.bos and "<BOS_TOKEN>" in template


def test_a_default_system_prompt_is_named() -> None:
    assert modelfile.default_system(of("qwen2.5")[0]) == "You are Qwen."
    assert modelfile.default_system(of("qwen3")[0]) == ""
    assert modelfile.default_system(of("llama-3.2")[0]) == "", "its turn is there, and nothing in it"


def test_a_modelfile() -> None:
    found, _, template = of("smollm2")
    text = modelfile.modelfile("model.gguf", template, ["<|im_end|>", "</s>"], modelfile.default_system(found), 2048)
    assert text.startswith("FROM ./model.gguf\n") and modelfile.template_in(text) == template
    assert 'SYSTEM """You are helpful."""\n' in text
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "</s>"\nPARAMETER num_ctx 2048\n' in text
    long = modelfile.modelfile("model.gguf", template, [], "", 131072)
    assert "PARAMETER num_ctx 8192\n# The model takes 131072;" in long


def test_text_that_go_or_the_modelfile_would_read_is_quoted() -> None:
    template = (
        "{% for m in messages %}{{ '{{' ~ m.role ~ '\"\"\"' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
        '{% if add_generation_prompt %}{{ \'{{assistant"""\' }}{% endif %}'
    )
    _, renderer, text = of("smollm2", template)
    assert '"""' not in text
    assert ids_of(renderer, text, CONVERSATIONS[3]) == renderer.prompt_ids(CONVERSATIONS[3])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content if loop.last else '' }}<|im_end|>{% endfor %}", "does not write what is said"),
        (
            "{% if messages | length > 1 %}many: {% endif %}{% for m in messages %}{{ m.role ~ m.content }}<|im_end|>{% endfor %}",
            "writes the first question otherwise",
        ),
    ],
)
def test_what_has_no_plain_turns_is_refused(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        of("smollm2", template)
