"""How often language models, folders of transformers, complete texts rightly: the last word, or one of several endings.

    python studies/gpt_fairybooks/completions.py cloze4.jsonl FOLDER [FOLDER ...]

Lines are {"context", "endings": [...], "label"} or {"context", "target"}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kdnas.datasets._text_files import TextFile
from kdnas.nn.pieces import LogitsOf
from kdnas.tokenizing import Tokenizer
from kdnas.training.completions import completions, read_items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--first", type=int, help="only so many items")
    arguments = parser.parse_args()
    items = read_items(TextFile(arguments.items), first=arguments.first)
    print("| model | parameters | items | accuracy | normalised by bytes |\n|---|---|---|---|---|")
    for folder in arguments.folders:
        network = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        tokenizer = Tokenizer(folder)
        answers = LogitsOf(network.float().eval(), use_cache=False)
        found = completions(answers, tokenizer, items, length=tokenizer.positions or 512, device=torch.device("cpu"))
        normalised = "" if found.normalised is None else f"{found.normalised:.3f}"
        params = sum(parameter.numel() for parameter in network.parameters())
        print(f"| {folder} | {params:,} | {found.count} | {found.accuracy:.3f} | {normalised} |", flush=True)


if __name__ == "__main__":
    main()
