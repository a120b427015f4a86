"""The usable rows of all sources, one after another: for what has to be known of them before the first is tokenised."""

from collections.abc import Iterator

from tunesmith.data.corpus.blocks import Sources, blocks
from tunesmith.data.corpus.pieces import samples_in
from tunesmith.data.sample import FileReport, Sample


def samples_of(sources: Sources) -> Iterator[Sample]:
    """Rows that cannot be used are passed over: whoever tokenises the rest tells of them."""
    reports, broken = list[FileReport](), list[str]()
    for block in blocks(sources, reports, broken):
        yield from samples_in(block)
