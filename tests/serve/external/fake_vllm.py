"""A server that speaks as vLLM does, without a model: an answer counts on from the prompt's last id. Run as a script, in a process of
its own, with vLLM's flags. What the first id of a prompt asks for:

    400 refused    401 nothing comes until the client leaves    402 the process dies in the middle    403 an error in the stream
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LEFT = threading.Event()
SEEN: list[dict[str, Any]] = []
LORAS: dict[str, str] = {}


def flag(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(200, "")
        elif self.path == "/metrics":
            self.send(200, '# HELP x\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\nother 5\n')
        elif self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.send(401, "who?")
        elif self.path == "/v1/models":
            base = {"id": flag("--served-model-name"), "max_model_len": 64}
            self.send(200, {"data": [base, *[{"id": name} for name in LORAS]]})
        elif self.path == "/seen":
            self.send(200, {"seen": SEEN, "loras": LORAS, "argv": sys.argv, "left": LEFT.is_set()})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        SEEN.append(body)
        if self.path == "/v1/load_lora_adapter":
            if "broken" in body["lora_path"]:
                self.send(400, {"error": {"message": "no such tensor"}})
                return
            LORAS[body["lora_name"]] = body["lora_path"]
            self.send(200, "Success")
        elif self.path == "/v1/unload_lora_adapter":
            del LORAS[body["lora_name"]]
            self.send(200, "Success")
        else:
            self.answer(body)

    def answer(self, body: dict[str, Any]) -> None:
        wish = body["prompt"][0]
        if wish == 400:
            self.send(400, {"error": {"message": "that cannot be", "type": "BadRequestError"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": a comment\n\n")
        if wish == 401:
            while not self.gone():
                time.sleep(0.01)
            LEFT.set()
            return
        if wish == 403:
            self.event({"error": {"message": "out of memory"}})
            return
        for number in range(body["max_tokens"]):
            if wish == 402 and number == 1:
                print("CUDA error: what a pity", flush=True)
                os._exit(9)
            token = body["prompt"][-1] + 1 + number
            stops = token in body["stop_token_ids"]
            logprobs = None
            if "logprobs" in body:
                top = {f"token_id:{token}": -1.5, f"token_id:{token + 1}": -2.0}
                logprobs = {"token_logprobs": [-1.5], "top_logprobs": [top], "tokens": [f"token_id:{token}"]}
            reason = "stop" if stops else "length" if number + 1 == body["max_tokens"] else None
            self.event({"choices": [{"text": "x", "token_ids": [token], "logprobs": logprobs, "finish_reason": reason}]})
            if stops:
                break
        self.wfile.write(b"data: [DONE]\n\n")

    def gone(self) -> bool:
        try:
            self.wfile.write(b": still here\n\n")
            self.wfile.flush()
        except OSError:
            return True
        return False

    def event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def send(self, status: int, value: Any) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    if "--fail" in sys.argv:
        print("no kernel for this device")
        sys.exit(3)
    if "--lora-modules" in sys.argv:
        at = sys.argv.index("--lora-modules") + 1
        while at < len(sys.argv) and sys.argv[at].startswith("{"):
            LORAS[json.loads(sys.argv[at])["name"]] = json.loads(sys.argv[at])["path"]
            at += 1
    ThreadingHTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()
