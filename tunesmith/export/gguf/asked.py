"""What llama.cpp makes of a GGUF file. Run as a program of its own, `python asked.py < questions.json > answers.json`: llama.cpp ends
its whole process on a file that it cannot use, and whoever proves an export must live on to say so. It imports nothing of the project.

Questions: model, adapter ("" for none), context (tokens), threads, texts, talks (messages), rendered (prompts as texts), prompts (token
ids), answer (tokens), places (for each prompt, how many of its first tokens a distribution is wanted behind), likeliest (tokens of a
distribution), letter (id of a token that is a whole character).
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

PATIENCE = 600  # seconds for one answer


def main() -> None:
    # llama.cpp's log may go anywhere; the answers have a channel of their own
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    server = _server(asked)
    ask = _Ask(server.listening_address, asked["letter"])
    prompts = asked["prompts"]
    result = {
        "texts": [ask.tokens(text, special=False) for text in asked["texts"]],
        "talks": [ask.talk(messages) for messages in asked["talks"]],
        "rendered": [ask.tokens(text, special=True) for text in asked["rendered"]],
        "answers": [ask.answer(ids, asked["answer"]) for ids in prompts],
        "likeliest": [
            [ask.likeliest(ids[:count], asked["likeliest"]) for count in counts]
            for ids, counts in zip(prompts, asked["places"], strict=True)
        ],
    }
    del server
    json.dump(result, channel)
    channel.close()


def _server(asked: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    if asked["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    params.n_ctx, params.n_parallel = asked["context"], 1
    params.warmup = params.fit_params = False
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # what is measured are the weights
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.swa_full = True  # a windowed cache would compute every prompt's beginning again
    return xllamacpp.Server(params)


class _Ask:
    """The server's own routes."""

    def __init__(self, address: str, letter: int):
        self.address, self.letter = address, letter

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.address + route, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)

    def tokens(self, text: str, special: bool) -> list[int]:
        """Ids of a text; `special`: as a prompt, with what is put around it, and special tokens as such."""
        ids: list[int] = self._post("/tokenize", {"content": text, "add_special": special, "parse_special": special})["tokens"]
        return ids

    def talk(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The chat template's text by llama.cpp's own template engine, and its ids; or why there is none."""
        try:
            text = self._post("/apply-template", {"messages": messages})["prompt"]
        except urllib.error.HTTPError as error:
            return {"refused": error.read().decode(errors="replace")[:300]}
        return {"text": text, "ids": self.tokens(text, special=True)}

    def answer(self, ids: list[int], count: int) -> list[int]:
        """The likeliest tokens behind a prompt, up to one that ends an answer."""
        said = self._post("/completion", {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": True, "return_tokens": True})
        tokens: list[int] = said["tokens"]
        return tokens

    def likeliest(self, ids: list[int], count: int) -> list[list[float]]:
        """[ids, logarithms of their probabilities] of the likeliest next tokens."""
        # a token that ends the answer, or a part of a character, would come without its distribution: a letter is drawn whatever is
        # likely. Probabilities are those before that.
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True, "logit_bias": [[self.letter, 1e4]]}
        top = self._post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return [[each["id"] for each in top], [each["logprob"] for each in top]]


if __name__ == "__main__":
    main()
