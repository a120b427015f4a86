"""A server that answers as vLLM does, computed by transformers: what a proof makes of right and of wrong answers is tested with it.
Run by a folder's own serve.sh in place of vLLM; FAKE_WRONG in
the environment lets it answer with the base whatever it is asked for, or make other tokens of messages.
"""

import base64
import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.methods.layouts import layout
from tunesmith.models import load as loading
from tunesmith.models import slots


def flag(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


WRONG = os.environ.get("FAKE_WRONG", "")
FOLDER = Path(flag("--model"))
MODEL: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)
STOPS = set(loading.stop_ids(Path(flag("--generation-config")), MODEL.config))
ADAPTERS: dict[str, Any] = {flag("--served-model-name"): {}}
if "--lora-modules" in sys.argv:
    for word in sys.argv[sys.argv.index("--lora-modules") + 1 :]:
        if word.startswith("-"):
            break
        name, path = word.split("=")
        ADAPTERS[name] = layout.fit(layout.read(Path(path)), MODEL).adapter


@torch.no_grad()
def completed(body: dict[str, Any]) -> dict[str, Any]:
    adapter = {} if "base" in WRONG else ADAPTERS[body["model"]]
    slots.place(MODEL, adapter)
    try:
        row_1TC = given(body)
        ids: list[int] = []
        ranked = []
        while len(ids) < body["max_tokens"]:
            logp_V = MODEL(inputs_embeds=row_1TC).logits[0, -1].log_softmax(-1)
            best = logp_V.topk(body.get("logprobs", 1))
            ranked.append({f"token_id:{token}": value for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)})
            ids.append(int(best.indices[0]))
            if ids[-1] in STOPS:
                break
            row_1TC = torch.cat([row_1TC, MODEL.get_input_embeddings()(torch.tensor([ids[-1:]]))], dim=1)
    finally:
        slots.lift(MODEL, adapter)
    return {"choices": [{"token_ids": ids, "logprobs": {"top_logprobs": ranked}, "finish_reason": "stop"}]}


def given(body: dict[str, Any]) -> torch.Tensor:
    if "prompt_embeds" in body:
        if "--enable-prompt-embeds" not in sys.argv:
            raise ValueError("no prompt embeds here")
        return torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)[None]
    found: torch.Tensor = MODEL.get_input_embeddings()(torch.tensor([body["prompt"]]))
    return found


def talked(body: dict[str, Any]) -> dict[str, Any]:
    ids = list(TOKENIZER.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False))
    if "template" in WRONG:
        ids = [ids[0], *ids]
    return {"prompt_token_ids": ids, "usage": {"prompt_tokens": len(ids)}}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.say(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] not in ADAPTERS or self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.say(404, {"error": {"message": "no such model"}})
        else:
            self.say(200, talked(body) if "messages" in body else completed(body))

    def say(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()
