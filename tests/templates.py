"""Chat templates as test data: short ones of our own that do what well-known families' published templates do, and a
small tokenizer that knows their special tokens."""

from typing import Any

TEMPLATES = {
    # a default system prompt, the same shape for every role
    "smollm2": """
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # tools in the system prompt, tool calls as tagged JSON, tool results as user messages
    "qwen2.5": """
{%- set system = messages[0].content if messages[0].role == 'system' else 'You are Qwen.' %}
{{- '<|im_start|>system\n' + system }}
{%- if tools %}{{ '\n\n# Tools' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{% endif %}
{{- '<|im_end|>\n' }}
{%- for message in messages %}
{%- if message.role in ('user', 'assistant') and not message.tool_calls %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{ '\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # thinking only after the last question; an empty block in front of an answer without thinking
    "qwen3": """
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}
{%- set reason = '' %}
{%- if message.reasoning_content is string %}{% set reason = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reason = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or reason) %}{{ '<think>\n' + reason.strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- content.lstrip('\n') + '<|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}""",
    # cuts thinking out of every answer; the generation prompt opens it; arguments are added as text
    "deepseek-r1": """
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- elif message.role == 'tool' %}{{ '<｜tool｜>' + message.content }}
{%- elif message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '<｜Assistant｜><｜call｜>' + call.function.name + '\n' + call.function.arguments + '<｜end▁of▁sentence｜>' }}
{%- endfor %}
{%- else %}
{%- set content = message.content.split('</think>')[-1] %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}""",
    # dates in the system prompt, trimmed contents, one tool call a message
    "llama-3.2": """
{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
{{- '<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + (message.content | tojson) + '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    # the system prompt stands in the first question; roles must alternate; `model` for assistant
    "gemma-3": """
{{- bos_token }}
{%- set first = '' %}
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    # nothing between question and answer but a closing tag; no generation prompt; no system role
    "mistral": """
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}
{%- endfor %}""",
    # tools and the system prompt in front of the last question only; calls need ids of nine letters
    "mistral-v3": """
{%- set ns = namespace(system='', last=-1) %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}{% endif %}
{%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (ns.system if loop.last else '') + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}""",
    # a stop token that is not the tokenizer's, and the tokenizer's behind the last message only
    "phi-3": """
{%- for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}""",
    # two tokens end an answer; servers stop at the second
    "cohere2": """
{{- bos_token }}
{%- for message in messages %}
{%- set role = {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[message.role] %}
{{- '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' }}
{%- if role == 'CHATBOT' %}{{ '<|START_RESPONSE|>' + message.content + '<|END_RESPONSE|>' }}{% else %}{{ message.content }}{% endif %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}""",
    # no stop token at all: the next message's role token is what the model writes
    "glm": """
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<|user|>\n' + message.content }}
{%- elif message.role == 'tool' %}{{ '<|observation|>\n' + message.content }}
{%- elif message.tool_calls %}{{ '<|assistant|>' + message.tool_calls[0].function.name + '\n' + message.tool_calls[0].function.arguments }}
{%- else %}{{ '<|assistant|>\n' + message.content.strip() }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
    # thinking in a channel of its own, behind a special token that does not stop; that of earlier work goes once an answer is there
    "gpt-oss": """
{%- set ns = namespace(done=-1) %}
{%- for message in messages %}
{%- if message.role == 'assistant' and not message.tool_calls %}{% set ns.done = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.thinking and (loop.last or message.tool_calls and loop.index0 > ns.done) %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + (call.arguments | tojson) + '<|call|>' }}
{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}
{%- endif %}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}""",
}
# every answer thinks: the generation prompt opens the block that the full rendering writes as well
TEMPLATES["qwen3-thinking"] = (
    TEMPLATES["qwen3"].partition("{%- if add_generation_prompt")[0]
    + "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

# bos, eos, further special tokens of each family
TOKENS: dict[str, tuple[str | None, str, list[str]]] = {
    "smollm2": ("<|im_start|>", "<|im_end|>", ["<|endoftext|>"]),
    "qwen2.5": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "qwen3": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "qwen3-thinking": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "deepseek-r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ["<｜User｜>", "<｜Assistant｜>", "<｜call｜>", "<｜tool｜>"]),
    "llama-3.2": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]),
    "gemma-3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>", *(f"<unused{n}>" for n in range(100))]),
    "mistral": ("<s>", "</s>", []),
    "mistral-v3": (
        "<s>",
        "</s>",
        [f"[{mark}{word}]" for word in ("INST", "AVAILABLE_TOOLS", "TOOL_RESULTS") for mark in ("", "/")] + ["[TOOL_CALLS]"],
    ),
    "phi-3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "glm": (None, "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "[gMASK]", "<sop>"]),
    "cohere2": (
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        [
            *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
            *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ],
    ),
    "cohere": (
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"],
    ),
    "lfm2": ("<|startoftext|>", "<|im_end|>", ["<|im_start|>"]),
    "gpt-oss": (None, "<|return|>", ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"]),
    "gemma-4": (
        "<bos>",
        "<eos>",
        [
            *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>"),
            *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
        ],
    ),
    "muse": ("<|bot|>", "<|eot|>", ["<|eom|>", "<|message|>", "<|start|>"]),
}
WORDS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # added, yet not special, as Qwen3 has them
ADDS_BOS = {"deepseek-r1", "llama-3.2", "gemma-3", "mistral", "mistral-v3"}  # `tokenizer("x")` begins with BOS

_PROSE = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? It is Paris.\n\nYou are helpful.",
    'def f(x):\n    return x + 1\n\n\n  indented\n   more\n{"name": "weather", "arguments": {"city": "Paris"}}\n',
    "user\n  two blanks\nassistant\n  two blanks\n system\n\n",
] * 4


def make_tokenizer(family: str, template: str | None = None) -> Any:
    """A byte-level BPE tokenizer trained on a few lines, with a family's special tokens and template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos, others = TOKENS[family]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces = [piece for text in _PROSE for piece in _words(text)]
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(alphabet), show_progress=False, special_tokens=[])
    backend.train_from_iterator(pieces, trainer)
    specials = list(dict.fromkeys(token for token in [bos, eos, *others] if token))
    # Phi-3's role tokens swallow the line end behind them
    rstrip = set(others) if family == "phi-3" else set()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True, rstrip=token in rstrip) for token in specials])
    backend.add_tokens([AddedToken(word, normalized=False, special=False) for word in WORDS])
    if family in ADDS_BOS and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template if template is not None else TEMPLATES[family]
    return tokenizer


def _words(text: str) -> list[str]:
    """Words with the blank or line ends before them, so that merges across blanks are learned but none across words."""
    import re

    return re.findall(r"\s*\S+|\s+", text)
