"""predict.py for texts: it reads them by the tokenizer next to it, and runs the network that lies there too.

It is run and compared in a process of its own, as that for pictures is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from kdnas.core.preprocessing import TextPreprocessing
from kdnas.core.ruling import allowed
from kdnas.exporters import TrainedStudent
from kdnas.exporters._labelling import (
    SCRIPT,
    Loader,
    check_printed,
    check_printed_ranking,
    check_printed_values,
    loaders_of,
    printed_alone,
)
from kdnas.exporters._probe import reference_logits
from kdnas.tokenizing import TOKENIZER_FILE, Encoded, Tokenizer

_PROBES = 3
_ONE = '"a fine piece of work"'

_TEXT = '''"""{what} with the network next to this script. It needs tokenizers, NumPy and {packages}.

    python predict.py {asked}          {does}; see --help
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
PREPROCESSING = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
INPUTS = {inputs}
RANKS = {ranks}


def open_tokenizer():
    """Return what makes tokens of a text: long ones are cut off, as in training. Needs tokenizers."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(PREPROCESSING["length"])
    return tokenizer


def bare(text):
    """Return a text without space around it."""
    return text.replace("\\ufeff", "").strip()


def parts_of(text):
    """Return the text, or the two with a tab between them, as they were trained on: without space around them.

    Raises ValueError where they are not there.
    """
    count = 2 if "segments" in INPUTS else 1
    parts = [bare(part) for part in text.split("\\t", count - 1)]
    if len(parts) < count:
        raise ValueError(f"{{text!r}} is one text, and two are compared: put a tab between them")
    if not all(parts):
        raise ValueError(f"{{text!r}} has no text" if count == 1 else f"{{text!r}} lacks one of the two texts")
    return parts


def read(tokenizer, text):
    """Return what the network takes, by name and int64 [1, T] each, from a text. Raises ValueError."""
    return tokens_of(tokenizer, *parts_of(text))


def tokens_of(tokenizer, *parts):
    """Return what the network takes of a text, or two, by name and int64 [1, T] each."""
    found = tokenizer.encode(*parts)
    given = {{"tokens": found.ids, "mask": found.attention_mask, "segments": found.type_ids}}
    return {{name: np.array([given[name]], dtype=np.int64) for name in INPUTS}}


def within_rules(tokenizer, tokens, logits):
    """Return the logits [K] without what the stated rules forbid the text; as they are where that is all."""
    text, names = tokenizer.decode(tokens), PREPROCESSING["class_names"]
    kept = np.ones(len(names), dtype=bool)
    for rule in PREPROCESSING.get("rules", []):
        if re.search(rule["when"] or "", text, re.IGNORECASE):
            kept &= [name in rule["then"] if rule["then"] else name not in rule["never"] for name in names]
    return np.where(kept, logits, -np.inf) if kept.any() else logits
{loaders}

NETWORKS = {{{networks}}}


def label(text, tokenizer, logits_of, top, as_json):
    """Print the likeliest classes of one text, or the number that is predicted of it."""
    inputs = read(tokenizer, text)
    logits = logits_of(inputs)[0]
    if not PREPROCESSING["class_names"]:
        value = float(logits[0])
        print(json.dumps({{"text": text, "value": value}}) if as_json else f"{{text}}: {{value:.4g}}", flush=True)
        return
    logits = within_rules(tokenizer, inputs["tokens"][0].tolist(), logits)
    raised = np.exp(logits - logits.max())
    named = zip((raised / raised.sum()).tolist(), PREPROCESSING["class_names"], strict=True)
    ranked = sorted(named, key=lambda pair: -pair[0])[:top]
    if as_json:
        classes = [{{"class": name, "probability": probability}} for probability, name in ranked]
        print(json.dumps({{"text": text, "classes": classes}}), flush=True)
    else:
        shares = ", ".join(f"{{name}} {{100 * probability:.1f}} %" for probability, name in ranked)
        print(f"{{text}}: {{shares}}", flush=True)


def rank(query, candidates, tokenizer, logits_of, top, as_json):
    """Print the candidates for a query, those of the highest scores first."""
    read_together = (tokens_of(tokenizer, bare(query), bare(candidate)) for candidate in candidates)
    scores = [float(logits_of(inputs)[0, 0]) for inputs in read_together]
    ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])[:top]
    if as_json:
        listed = [{{"candidate": candidate, "score": score}} for score, candidate in ranked]
        print(json.dumps({{"query": query, "candidates": listed}}), flush=True)
        return
    print(query, flush=True)
    for score, candidate in ranked:
        print(f"{{score:10.4g}}  {{candidate}}", flush=True)


def main():
    """Label the texts that are named, or those on the lines of the standard input; or rank candidates for a query."""
    networks = [name for name in NETWORKS if (FOLDER / name).exists()]
    classes = len(PREPROCESSING["class_names"])
    what = f"Labels texts with one of {{classes}} classes." if classes else "Tells the number of texts."
    parser = argparse.ArgumentParser(description="Ranks candidates for a query." if RANKS else what)
    one = "two texts with a tab between them" if "segments" in INPUTS else "a text"
    one = "a query, then its candidates; in a line with tabs between them" if RANKS else one
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=f"{{one}}; without any, each line of standard input")
    parser.add_argument("--network", choices=networks, default=networks[0], help="the file that is run (%(default)s)")
    told = "candidates shown, the best first (all)" if RANKS else "classes a text, the likeliest first (3)"
    parser.add_argument("--top", type=int, metavar="N", default=10**9 if RANKS else 3, help=told)
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error("--top: 1 or more")
    tokenizer, logits_of = open_tokenizer(), NETWORKS[arguments.network]()
    if RANKS:
        asked = [arguments.texts] if arguments.texts else (line.rstrip("\\n").split("\\t") for line in sys.stdin)
        for query, *candidates in asked:
            if not candidates or not all(map(bare, [query, *candidates])):
                parser.error("a query and one candidate or more, none of them empty")
            rank(query, candidates, tokenizer, logits_of, arguments.top, arguments.json)
        return
    for text in arguments.texts or (line.rstrip("\\n") for line in sys.stdin):
        try:
            parts_of(text)
        except ValueError as error:
            parser.error(str(error))
        label(text, tokenizer, logits_of, arguments.top, arguments.json)


if __name__ == "__main__":
    main()
'''


def write_text_predict(student: TrainedStudent, folder: Path) -> tuple[str, ...]:
    """Write the tokenizer, and predict.py for every network that lies in `folder`, and return their names.

    There is no script where no tokenizer is known, nor for a language model.
    """
    there = loaders_of(folder)
    given = student.preprocessing
    if student.tokenizer is None or not isinstance(given, TextPreprocessing):
        return ()
    for name in given.tokenizer:
        shutil.copyfile(student.tokenizer / name, folder / name)
    if TOKENIZER_FILE not in given.tokenizer or student.spec.rows > 1 or not there:
        return given.tokenizer
    (folder / SCRIPT).write_text(_script(student, there), encoding="utf-8")
    return *given.tokenizer, SCRIPT


def _script(student: TrainedStudent, loaders: Sequence[Loader]) -> str:
    ranks = student.spec.candidates > 0
    asked, read = ("$'a question\\\\tits answer'", "two texts") if _of_pairs(student) else (_ONE, "a text")
    asked = '"a query" "a candidate" "another one"' if ranks else asked
    return _TEXT.format(
        packages=" or ".join(loader.needs for loader in loaders),
        what="Ranks candidates for a query" if ranks else "Labels texts",
        asked=asked,
        does="the candidates, best first" if ranks else f"label {read}, or several",
        ranks=ranks,
        inputs=tuple(taken.name for taken in student.spec.inputs),
        loaders="".join(loader.text for loader in loaders).rstrip("\n"),
        networks=", ".join(f'"{loader.file}": {loader.function}' for loader in loaders),
    )


def _of_pairs(student: TrainedStudent) -> bool:
    return any(taken.name == "segments" for taken in student.spec.inputs)


def check_text_predict(student: TrainedStudent, folder: Path, loader: Loader) -> None:
    """Raise ExportError unless predict.py, run alone with the loader's network, labels texts as the student does."""
    given, script = student.preprocessing, folder / SCRIPT
    if not script.is_file() or student.tokenizer is None or not isinstance(given, TextPreprocessing):
        return
    tokenizer = Tokenizer(student.tokenizer)
    drawn = torch.randint(0, tokenizer.size, (_PROBES, 12), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(tokenizer.decode(one).split()).lstrip("-") or "a text" for one in drawn]
    asked = list(zip(texts, reversed(texts), strict=True)) if _of_pairs(student) else [(text,) for text in texts]
    names, ranks = given.class_names, student.spec.candidates > 0
    if ranks:
        asked = [(texts[0], text) for text in texts]
    arguments = [texts[0], *texts] if ranks else list(map("\t".join, asked))
    with tempfile.TemporaryDirectory(prefix="kdnas-export-") as scratch:
        shown = len(names) or len(arguments)
        printed = printed_alone(script, loader, *arguments, folder=Path(scratch), classes=shown)
    inputs = [_tokens(student, tokenizer, parts, given.length) for parts in asked]
    logits = [reference_logits(student, *one)[0] for one in inputs]
    if given.rules:
        read = [tokenizer.decode(one[0][0].tolist()) for one in inputs]
        kept = [torch.tensor(allowed(text, given.rules, names)) for text in read]
        logits = [one.masked_fill(~those, -torch.inf) for one, those in zip(logits, kept, strict=True)]
    if ranks:
        check_printed_ranking(printed, loader, texts, [float(one[0]) for one in logits])
    elif names:
        check_printed(printed, loader, names, [one.softmax(0).tolist() for one in logits])
    else:
        check_printed_values(printed, loader, [float(one[0]) for one in logits])


def _tokens(student: TrainedStudent, tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[torch.Tensor]:
    one: Encoded = tokenizer.encode([(texts[0], texts[1])] if len(texts) > 1 else texts, length)[0]
    parts = {"tokens": list(one.ids), "mask": [1] * len(one.ids), "segments": list(one.segments)}
    return [torch.tensor([parts[taken.name]]) for taken in student.spec.inputs]
