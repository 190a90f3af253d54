"""Completions: likelihoods against loops over single texts, and the published-style numbers of the shared teacher."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from kdnas.datasets._text_files import TextFile
from kdnas.errors import DataError
from kdnas.tokenizing import Tokenizer, train_tokenizer
from kdnas.training.completions import Item, completions, read_items, share_completed

pytest.importorskip("tokenizers")
CPU = torch.device("cpu")


class Noise(nn.Module):
    """A causal model of fixed random logits: each depends on the last two tokens."""

    def __init__(self, vocabulary: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (torch.randn(vocabulary, vocabulary, generator=generator) for _ in range(2))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        return 2 * self.first[tokens] + self.second[before]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer("bpe", ["a king and a queen had a son"] * 9, folder, vocabulary=300, purpose="running")


ITEMS = [
    Item(f"a king had {n} sons and", ("a queen", "a son too", "no", "a daughter, who was fair"), n % 4)
    for n in range(40)
]


def test_endings_are_ranked_by_their_likelihood_and_by_that_of_each_byte(tokenizer: Tokenizer) -> None:
    network = Noise(tokenizer.size)
    right = [0, 0]
    for item in ITEMS:
        nats = []
        for ending in item.endings:
            context = tokenizer.encode([item.context], None, special=False)[0].ids
            whole = tokenizer.encode([f"{item.context} {ending}"], None, special=False)[0].ids
            shares = network(torch.tensor([whole])).log_softmax(-1)[0]
            nats.append(float(sum(shares[place - 1, whole[place]] for place in range(len(context), len(whole)))))
        each = [total / len(ending) for total, ending in zip(nats, item.endings, strict=True)]
        right[0] += max(range(4), key=lambda place: nats[place]) == item.label
        right[1] += max(range(4), key=lambda place: each[place]) == item.label
    found = completions(network, tokenizer, ITEMS, length=64, device=CPU)
    assert (found.count, found.accuracy, found.normalised) == (40, right[0] / 40, right[1] / 40)
    assert 0 < right[0] < 40


def test_a_last_word_is_right_where_all_its_tokens_are_the_likeliest(tokenizer: Tokenizer) -> None:
    class Knows(Noise):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*tokens.shape, tokenizer.size)
            text = tokenizer.encode(["a king had a queen"], None, special=False)[0].ids
            for token, following in pairwise(text):
                logits[..., following] += (tokens == token).float()
            return logits

    items = [Item("a king had a", ("queen",)), Item("a king had a", ("king",))]
    found = completions(Knows(tokenizer.size), tokenizer, items, length=64, device=CPU)
    assert (found.accuracy, found.normalised) == (0.5, None)


def test_long_contexts_are_cut_at_their_beginning(tokenizer: Tokenizer) -> None:
    seen = []

    class Watching(Noise):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tokens)
            return super().forward(tokens)

    item = Item("a king " * 50 + "had", ("a queen", "a son"))
    completions(Watching(tokenizer.size), tokenizer, [item], length=12, device=CPU)
    whole = list(tokenizer.encode([f"{item.context} a queen"], None, special=False)[0].ids)
    assert seen[0][0].tolist() == whole[-13:-1]


@pytest.mark.parametrize("length", [8, 16, 40])
def test_no_more_tokens_are_asked_for_than_the_network_takes(tokenizer: Tokenizer, length: int) -> None:
    seen = []

    class Watching(Noise):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tokens)
            return super().forward(tokens)

    question = "who was the king that had a son and a daughter and " * 6
    item = Item(f"Q: {question}?\nA:", ("nobody",), is_question=True)
    completions(Watching(tokenizer.size), tokenizer, [item], length=length, device=CPU)
    whole = list(tokenizer.encode([item.context], None, special=False)[0].ids)
    own = min(16, length // 2)
    assert seen[0][0].tolist() == whole[-(length - own) :]
    assert max(tokens.shape[1] for tokens in seen) == length - 1


def test_what_is_no_item_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"context": "a", "endings": ["b", "c"], "label": 2}, {"context": "a"}, {"context": "", "target": "b"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\nno\n")
    with pytest.raises(DataError) as caught:
        read_items(TextFile(path))
    printed = str(caught.value)
    assert "line 1: is no item: label 2 names none of 2 endings" in printed
    assert "line 2: is no item: it has no 'target'" in printed
    assert "line 3: is no item: a text is empty, or none" in printed
    assert "line 4: is no item" in printed
    path.write_text('{"context": "a", "target": "b"}\n{"context": "a", "endings": ["b", "c"], "label": 1}\n')
    with pytest.raises(DataError, match="mixes endings and last words"):
        read_items(TextFile(path))
    assert len(read_items(TextFile(path), first=1)) == 1
    path.write_text("".join(f'{{"context": "a", "target": "{n}"}}\n' for n in range(5)))
    assert [item.endings for item in read_items(TextFile(path), skip=3, first=1)] == [("3",)]
    with pytest.raises(DataError, match="no more than 5 items"):
        read_items(TextFile(path), skip=5)
    path.write_text('\ufeff{"question": "who?", "answers": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 1: is no item: there are no answers"):
        read_items(TextFile(path))


def test_an_answer_is_right_where_it_is_one_of_those_stated(tokenizer: Tokenizer) -> None:
    class Writes(Noise):
        """Writes one text after "A:", token by token, whatever is asked."""

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            text = tokenizer.encode([" A king, and more"], None, special=False)[0].ids
            logits = torch.zeros(*tokens.shape, tokenizer.size)
            for row, ids in enumerate(tokens.tolist()):
                for place in range(len(ids)):
                    before = tokenizer.decode(ids[: place + 1]).partition("A:")[2]
                    written = len(tokenizer.encode([before], None, special=False)[0].ids) if before else 0
                    logits[row, place, text[min(written, len(text) - 1)]] = 1.0
            return logits

    items = [
        Item("Q: who?\nA:", ("nobody", "The King!"), is_question=True),
        Item("Q: who is he, do you know?\nA:", ("king", "son"), is_question=True),
        Item("Q: he?\nA:", ("a queen",), is_question=True),
    ]
    found = completions(Writes(tokenizer.size), tokenizer, items, length=64, device=CPU)
    assert (found.count, found.accuracy, found.normalised) == (3, pytest.approx(2 / 3), None)
    assert share_completed(Writes(tokenizer.size), tokenizer, items, length=64, device=CPU) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_shared_teacher_scores_what_was_measured_when_it_was_made(data_root: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = data_root / "teachers/gpt2_fairybooks"
    printed = json.loads((folder / "train_info.json").read_text())["cloze4"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()

    class Logits(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return model(tokens).logits

    items = read_items(TextFile(data_root / "text/lm_qa.tar.xz", "lm/fairybooks/cloze4.jsonl"))
    found = completions(Logits(), Tokenizer(folder), items, length=256, device=CPU)
    assert found.count == printed["n"]
    assert found.accuracy == pytest.approx(printed["acc"], abs=0.005)  # theirs is normalised by tokens, not by bytes
