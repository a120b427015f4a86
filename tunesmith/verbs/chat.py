"""Talk to a run, an adapter or a base model; with --compare to the model with and without its adapter."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import UserError

HELP = "talk to a run, an adapter or a base model in the terminal"
COMMANDS = {
    "/reset": "forget the conversation",
    "/system": "set the system prompt and forget the conversation: /system TEXT; without TEXT none",
    "/help": "these lines",
    "/quit": "end; so does the end of the input (Ctrl-D)",
}
WHAT = {"classify": "its labels with their probabilities", "tag": "the entities in it"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR|M", help="run folder, adapter folder or base model")
    parser.add_argument("--compare", action="store_true", help="let the model without its adapter answer too")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest word (the default)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest words that make up P")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (512)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws, where the temperature is above 0")


@dataclass(slots=True)
class Talk:
    """One speaker's side of the conversation: with --compare each model goes on from its own answers."""

    title: str  # "" where there is one speaker
    adapter: bool
    messages: list[dict[str, Any]] = field(default_factory=list)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 2 where piped input met a turn that could not be answered."""
    from tunesmith.generate import Sampling
    from tunesmith.tuned import open_tuned

    # wrong flags should not cost the loading time
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p, seed=arguments.seed)
    tuned = open_tuned(arguments.model)
    if tuned.head is not None:
        if arguments.compare:
            raise UserError(f"--compare: {arguments.model} predicts labels with the head that it learned, and its base has none")
        return label(tuned, lines(f"{tuned.name}: a text a line, answered by {WHAT[tuned.head.task]}; /quit ends"))
    if arguments.compare and not tuned.has_adapter:
        base = tuned.run.model.source if tuned.run else ""
        why = f"{tuned.run.method.name} trained the base's own weights" if tuned.run else "it is a model by itself"
        cure = f"talk to the base in another terminal: tunesmith chat {base}" if base else "name a run or an adapter folder"
        raise UserError(f"--compare: {arguments.model} has no adapter to leave out, {why}; {cure}")
    talks = [Talk("base", False), Talk("tuned", True)] if arguments.compare else [Talk("", True)]
    return converse(tuned, talks, sampling, arguments.system, lines(f"{tuned.name}: /help shows the commands"))


def converse(tuned: Any, talks: list[Talk], sampling: Any, system: str | None, user_lines: Iterator[str]) -> int:
    """Answer line by line until they end; 2 where a turn failed and nobody sits at the terminal, else 0."""
    import dataclasses

    _begin(talks, system)
    code, turn = 0, 0
    for line in user_lines:
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            _begin(talks, system)
            _note("the conversation is empty again")
        elif command == "/system":
            system = rest.strip() or None
            _begin(talks, system)
            _note(f"system prompt: {system}" if system else "no system prompt")
        elif command.startswith("/") and not command.startswith("//"):
            unknown = [] if command == "/help" else [f"no command {command}; a message that begins with / is written with //"]
            _note("\n".join(unknown + [f"{name:8} {what}" for name, what in COMMANDS.items()]))
        else:
            turn += 1
            # another stream of random numbers for every turn, the same for both speakers
            drawn = dataclasses.replace(sampling, seed=sampling.seed + turn)
            if not _turn(tuned, talks, drawn, line.removeprefix("/") if line.startswith("//") else line) and not sys.stdin.isatty():
                code = 2
    return code


def label(tuned: Any, user_lines: Iterator[str]) -> int:
    """What a head makes of each line: labels with their probabilities, or entities; 2 where a piped line had none, else 0."""
    from tunesmith.data.sample import RowError

    code = 0
    for line in user_lines:
        if line == "/quit":
            break
        try:
            print(printable(_labelled(tuned, line)), flush=True)
        except (UserError, RowError) as error:
            _note(str(error))
            code = code if sys.stdin.isatty() else 2
    return code


def _labelled(tuned: Any, line: str) -> str:
    from tunesmith.evaluate.evaluation import likeliest
    from tunesmith.evaluate.predict import predict
    from tunesmith.tasks import tag

    fed = tuned.renderer.feed(tuned.renderer.sample(line))
    [found] = predict(tuned, [fed])
    if tuned.head.task == "tag":
        answer: str = tag.decode(tuned.head.labels, fed, found.numbers).json(line)
        return answer
    return ", ".join(f"{name} {share:.3f}" for name, share in likeliest(tuned.head.labels, found.logp_PL[0]).items())


def lines(greeting: str) -> Iterator[str]:
    """What the user types, or the lines of a pipe; empty ones are left out."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\r\n")
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history in `input`
    _note(greeting)
    while True:
        try:
            # a terminal can hand over half a character as a lone surrogate, which no tokenizer takes
            line = input("> ").encode("utf-8", "replace").decode("utf-8")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _note("Ctrl-D or /quit ends")
            continue
        if line.strip():
            yield line


def _begin(talks: list[Talk], system: str | None) -> None:
    for talk in talks:
        talk.messages[:] = [{"role": "system", "content": system}] if system else []


def _turn(tuned: Any, talks: list[Talk], sampling: Any, text: str) -> bool:
    """Let every speaker answer. A turn that fails for one is taken back for all, so that both go on from the same lines."""
    from tunesmith.data.sample import RowError

    before = [list(talk.messages) for talk in talks]
    try:
        for talk in talks:
            talk.messages.append({"role": "user", "content": text})
            with contextlib.nullcontext() if talk.adapter else tuned.without_adapter():
                talk.messages.append(_say(tuned, talk, sampling))
    except (UserError, RowError) as error:
        _note(f"{error}\nthis turn was taken back; /reset begins a new conversation")
        for talk, messages in zip(talks, before, strict=True):
            talk.messages[:] = messages
        return False
    return True


def _say(tuned: Any, talk: Talk, sampling: Any) -> dict[str, Any]:
    """Print the answer while it comes; Ctrl-C ends the answer, and what was said so far stays."""
    from tunesmith.evaluate.evaluate import split_thinking
    from tunesmith.generate import detokenize, stream

    prompt = tuned.renderer.prompt_ids(talk.messages, ())
    if talk.title:
        print(_styled(f"{talk.title}: ", sys.stdout), end="", flush=True)
    said = []
    tokens = stream(tuned.model, prompt, tuned.renderer.stops, sampling)
    with contextlib.closing(tokens):
        try:
            for piece in detokenize(tuned.tokenizer, tokens):
                said.append(piece)
                print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            print(_styled(" [stopped]", sys.stdout), end="")
    print(flush=True)
    thinking, answer = split_thinking("".join(said))
    return {"role": "assistant", "content": answer} | ({"reasoning_content": thinking} if thinking else {})


def printable(text: str) -> str:
    """Without control characters: a model's answer must not move the cursor or set the terminal's title."""
    return "".join(letter for letter in text if letter in "\n\t" or (ord(letter) >= 32 and not 127 <= ord(letter) < 160))


def _note(text: str) -> None:
    print(_styled(text, sys.stderr), file=sys.stderr, flush=True)


def _styled(text: str, to: Any) -> str:
    return f"\x1b[2m{text}\x1b[0m" if to.isatty() else text
