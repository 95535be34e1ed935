"""Makes a tokenizer's surprisal table: `scripts/unigrams.py TOKENIZER.json OUT TEXT...`, how unlikely each token is.

The table is the same for every dataset, so that nobody moves it. The committed one comes from the Debian 12 packages of
docs/attribution.md; a text is a file, plain or .gz, or a folder of them. A token seen c times among n, with v in the
vocabulary, has log2((n + v) / (c + 1)) bits, rounded to millibits.
"""

from __future__ import annotations

import gzip
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

CHUNK = 100_000


def texts(paths: list[Path]) -> Iterator[str]:
    """The texts, in the order of their paths, in chunks that end with a line."""
    for path in paths:
        if path.is_dir():
            yield from texts(sorted(path.iterdir()))
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8", "replace").splitlines(keepends=True)
        held: list[str] = []
        for line in lines:
            held.append(line)
            if sum(map(len, held[-64:])) > CHUNK or len(held) > 4096:
                yield "".join(held)
                held = []
        if held:
            yield "".join(held)


def main(tokenizer_file: Path, out: Path, paths: list[Path]) -> None:
    """Count and write int32, little-endian, by token id."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    counts = np.zeros(size, np.int64)
    for text in texts(paths):
        counts += np.bincount(tokenizer.encode(text, add_special_tokens=False).ids, minlength=size)
    whole = int(counts.sum()) + size
    table = [round(1000 * math.log2(whole / (int(count) + 1))) for count in counts]
    np.array(table, "<i4").tofile(out)
    seen = int((counts > 0).sum())
    print(f"{int(counts.sum()):,} tokens, {seen:,} of {size:,} seen; {min(table)} to {max(table)} millibits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
