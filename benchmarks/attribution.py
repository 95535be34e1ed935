"""Attribution by figures: what tracing finds, what it pays wrongly, what cheating gains, and what it costs.

    python benchmarks/attribution.py [BASE_FOLDER] [--answers FILE] [--sizes 1000000 10000000] [--json]

The corpus is the text of this Python installation (sources and documents of the standard library and of the packages);
responses are other files of it. Times are CPU time of this process, one thread: a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openlora_node.attribution.background import background_digest
from openlora_node.attribution.corpusindex import CorpusIndex, build, save
from openlora_node.attribution.dataset import Sample, read_samples
from openlora_node.attribution.encoder import TokenizerEncoder
from openlora_node.attribution.indexed import PPM, to_indexed
from openlora_node.attribution.suffixes import SuffixArray, separator_of
from openlora_node.attribution.surprisal import surprisal_table
from openlora_node.attribution.tracer import Reading, prompt_tokens
from openlora_node.attribution.tracing import trace
from openlora_node.protocol.crypto import Address

DEMO = Path(__file__).parents[1] / "configs" / "demo"
BASE = Path(sys.prefix) / "share" / "openlora" / "models" / "smollm2-135m-instruct"
LENGTH, RESPONSES, PLANTS = 256, 200, 4
DOCUMENT = 400
"""Tokens of one document of the corpus: a piece of a file."""
NOBODY = bytes(32)


def texts() -> Iterator[str]:
    """Files of this installation in an order of their own, the same every time."""
    roots = {Path(json.__file__).parents[1], Path(np.__file__).parents[1]}
    files = [
        path for root in sorted(roots) for path in root.rglob("*") if path.suffix in {".py", ".md", ".rst", ".txt"}
    ]
    files.sort(key=lambda path: path.as_posix())
    random.Random(7).shuffle(files)
    for path in files:
        if path.is_file() and path.stat().st_size > 2_000:
            yield path.read_bytes()[:400_000].decode("utf-8", "replace")


def gather(encoder: TokenizerEncoder, size: int) -> tuple[list[list[int]], float]:
    """Documents of about `size` tokens in all, and how many seconds of CPU the tokenizer took."""
    documents: list[list[int]] = []
    have, began = 0, time.process_time()
    for text in texts():
        (ids,) = encoder.encode([text])
        documents += [ids[at : at + DOCUMENT] for at in range(0, len(ids), DOCUMENT)]
        have += len(ids)
        if have >= size:
            break
    return documents, time.process_time() - began


def assemble(documents: list[list[int]], owners: list[int], table: Any, encoder: TokenizerEncoder) -> CorpusIndex:
    """An index over documents that are tokens already."""
    empty = build(NOBODY, [], encoder, table, background=background_digest())
    separator = [separator_of(np.uint16)]
    lengths = [len(document) + 1 for document in documents]
    tokens = np.concatenate([np.asarray([*document, *separator], np.uint16) for document in documents])
    return replace(
        empty,
        suffixes=SuffixArray.of(tokens),
        documents=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.uint32),
        document_owners=np.asarray(owners, np.uint32),
        owners=tuple(Address(number.to_bytes(20, "big")) for number in range(1, max(owners) + 2)),
    )


def respond(
    own: list[list[int]], foreign: list[list[int]], begins_word: Any, chance: random.Random
) -> tuple[list[int], list[tuple[int, int]]]:
    """A response of other text with planted spans of 16 to 40 tokens; where they stand.

    Planted is text: one in four tokens begins a word and half of them differ (a hash or a row of signs is neither).
    """
    words = [token for document in chance.sample(foreign, 3) for token in document][:LENGTH]
    plants = []
    for slot in range(PLANTS):
        length = chance.randint(16, 40)
        while True:
            source = chance.choice(own)
            start = chance.randrange(max(1, len(source) - length))
            span = source[start : start + length]
            if len(span) == length <= 2 * len(set(span)) and 4 * int(begins_word[span].sum()) >= length:
                break
        at = slot * LENGTH // PLANTS
        words[at : at + length] = span
        plants.append((at, at + length))
    return words, plants


def corpus_figures(encoder: TokenizerEncoder, table: Any, size: int) -> dict[str, Any]:
    """Everything that needs no model, over about `size` tokens."""
    documents, tokenising = gather(encoder, size + 60_000)
    foreign, documents = documents[-140:], documents[:-140]
    owners = [place % 10 for place in range(len(documents))]
    count = sum(map(len, documents))
    tokens = np.concatenate([np.asarray([*one, separator_of(np.uint16)], np.uint16) for one in documents])
    began = time.process_time()
    SuffixArray.of(tokens)
    sorting = time.process_time() - began
    index = assemble(documents, owners, table, encoder)
    with tempfile.TemporaryDirectory() as folder:
        save(index, Path(folder) / "index")
        stored = sum(path.stat().st_size for path in (Path(folder) / "index").iterdir())
    nobody = Reading.of(encoder).nobody
    prompt = prompt_tokens(encoder, {"messages": [{"role": "user", "content": "What does this module do?"}]})
    chance = random.Random(11)
    found = planted = 0
    spent, traces = [], []
    for _ in range(RESPONSES):
        words, plants = respond(documents, foreign, index.begins_word, chance)
        began = time.process_time()
        one = trace(index, words, prompt, nobody)
        spent.append(time.process_time() - began)
        traces.append(one)
        credited = {place for span in one.spans for place in range(span.start, span.end)}
        planted += len(plants)
        found += sum(2 * len(credited & set(range(start, end))) > end - start for start, end in plants)
    result = {
        "tokens": count,
        "tokenise_tokens_per_second": round(count / tokenising),
        "sort_tokens_per_second": round(count / sorting),
        "bytes_per_token": round((stored - 5 * len(encoder.pieces())) / count, 2),
        "planted_found": round(found / planted, 4),
        "trace_ms_median": round(1000 * float(np.median(spent)), 2),
        "trace_ms_p99": round(1000 * float(np.quantile(spent, 0.99)), 2),
    }
    if size <= 1_000_000:
        result |= cheating(index, documents, owners, foreign, encoder, table, nobody)
    return result


def earned(index: CorpusIndex, responses: list[list[int]], nobody: SuffixArray) -> dict[bytes, int]:
    """Credits over responses of one length, by owner."""
    sums: dict[bytes, int] = {}
    for words in responses:
        found = to_indexed(NOBODY, index.owners, [trace(index, words, (), nobody)])
        for owner, part in found.credits:
            sums[owner] = sums.get(owner, 0) + found.coverage * part
    return sums


def cheating(
    index: CorpusIndex,
    documents: list[list[int]],
    owners: list[int],
    foreign: list[list[int]],
    encoder: TokenizerEncoder,
    table: Any,
    nobody: SuffixArray,
) -> dict[str, float]:
    """What contributor 0 gains by adding copies of a fifth of all others' data, and by splitting into 100 names."""
    chance = random.Random(13)
    responses = [respond(documents, foreign, index.begins_word, chance)[0] for _ in range(RESPONSES)]
    cheat = bytes(index.owners[0])
    honest = earned(index, responses, nobody)
    others = [document for document, owner in zip(documents, owners, strict=True) if owner]
    copies = [[encoder.encode([" indeed"])[0][0], *one] for one in chance.sample(others, len(others) // 5)]
    copied = assemble(documents + copies, owners + [0] * len(copies), table, encoder)
    names = [10 + chance.randrange(100) if owner == 0 else owner for owner in owners]
    split = assemble(documents, names, table, encoder)
    known = {bytes(owner) for owner in index.owners[1:10]}
    after = sum(amount for owner, amount in earned(split, responses, nobody).items() if owner not in known)
    return {
        "copy_gain": round(earned(copied, responses, nobody)[cheat] / honest[cheat], 4),
        "split_gain": round(after / honest[cheat], 4),
    }


def demo_figures(encoder: TokenizerEncoder, table: Any, answers: dict[str, Any]) -> dict[str, Any]:
    """Coverage of each demo adapter's answers by its dataset, and of the base's answers to the same questions."""
    reading = Reading.of(encoder)
    result = {}
    for name, given in answers.items():
        with (DEMO / "datasets" / f"{name}.jsonl").open("rb") as file:
            samples: list[Sample] = list(read_samples(file))
        index = build(NOBODY, samples, encoder, table, background=background_digest())
        row = {}
        for who in ("adapter", "base"):
            traces = [
                trace(
                    index,
                    ids,
                    prompt_tokens(encoder, {"messages": [{"role": "user", "content": question}]}),
                    reading.nobody,
                )
                for question, ids in zip(given["questions"], given[who], strict=True)
            ]
            row[f"{who}_coverage"] = round(to_indexed(NOBODY, index.owners, traces).coverage / PPM, 4)
            row[f"{who}_with_spans"] = round(sum(bool(one.spans) for one in traces) / len(traces), 3)
        result[name] = row
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "base", type=Path, nargs="?", default=BASE, help="a folder with the default model's tokenizer.json"
    )
    parser.add_argument("--answers", type=Path, help="what configs/demo/answers.py wrote")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    encoder = TokenizerEncoder.open(options.base)
    table = surprisal_table(encoder.digest)
    result: dict[str, Any] = {}
    if options.answers is not None:
        result["demo"] = demo_figures(encoder, table, json.loads(options.answers.read_bytes()))
    for size in options.sizes:
        result[f"corpus {size}"] = corpus_figures(encoder, table, size)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for title, row in result.items():
        print(title)
        for name, value in row.items():
            print(f"  {name:28} {value}")


if __name__ == "__main__":
    main()
