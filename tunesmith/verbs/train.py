"""`tunesmith train`: begin a run."""

import argparse
import sys
from pathlib import Path

from tunesmith import config
from tunesmith.verbs import settings, then


def add_arguments(parser: argparse.ArgumentParser) -> None:
    settings.add_arguments(parser)
    then.add_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="the data report, trainable parameters, what would be written; nothing is")
    parser.add_argument("--print-config", action="store_true", help="every setting as YAML, and where it came from")


def run(arguments: argparse.Namespace) -> int:
    loaded = settings.read(arguments)
    if arguments.print_config:
        print(config.dump(loaded.run, loaded.origins), end="")
        return 0
    from tunesmith.train import figures, folder, loop
    from tunesmith.train.setting import decide
    from tunesmith.verbs.progress import follow, summary, to_talk
    from tunesmith.verbs.signals import stopping
    from tunesmith.verbs.telling import tell

    setting = decide(loaded.run, loaded.origins, tell)
    folder.check(setting.run.out)
    then.check(arguments.then, setting)
    if arguments.dry_run:
        for line in figures.preview(setting):
            print(line)
        return 0
    with stopping() as asked:
        finished = follow(loop.begin(setting, stop=asked, tell=tell))
    assert finished is not None
    out = Path(setting.run.out)
    print(summary(finished, out))
    if arguments.then:
        return then.do(arguments.then, out)
    print(f"next: {to_talk(out)}", file=sys.stderr)
    return 0
