"""The usable rows of all sources, one after another: for what has to be known of them before the first is tokenised."""

from collections.abc import Iterator

from tunesmith.data.corpus.blocks import Sources, blocks
from tunesmith.data.corpus.pieces import samples_in
from tunesmith.data.sample import FileReport, Sample


def samples_of(sources: Sources, lost: list[str] | None = None) -> Iterator[Sample]:
    """Rows that cannot be used are passed over: whoever tokenises the rest tells of them. The reason of the first of each block,
    and of each file that cannot be read, goes into `lost`, for whoever finds too little in the others."""
    reports, broken = list[FileReport](), list[str]()
    lost = [] if lost is None else lost
    for block in blocks(sources, reports, broken):
        yield from samples_in(block, lost)
    lost += broken
