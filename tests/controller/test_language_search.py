"""A search among students cut out of a language model, which transformers alone opens and continues texts with."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdnas.core.text import bits_per_byte
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError
from kdnas.record.front import candidates
from kdnas.report.summary import bits_in_words
from kdnas.session import search_study
from kdnas.study.loading import load_study

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

TALES = "".join(f"= {n} =\nOnce there was a king who had {n} sons, and one day they went away.\n" for n in range(80))
STUDY = """
name: tales
data: {type: text_corpus, train: train.txt, test: test.txt, begins: "^= .* =$", tokenizer: teacher, length: 32}
teacher: {type: causal_lm, model: teacher}
space: {derive: teacher, depth: [1, 2], inner: [0.5, 1.0], width: [1.0], heads: [1.0], importance: l1}
objectives: [perplexity, params]
training: {epochs: 2, batch_size: 8, optimizer: adamw, learning_rate: 0.003, precision: float32}
distillation: {task_weight: 0.3, losses: [{type: kd, weight: 0.7, temperature: 1}]}
budget: {trials: 2}
executor: {type: local, workers: 1}
final:
  seeds: 2
  max_students: 1
  control: false
  completions: [last.jsonl, {file: asked.jsonl, name: questions, first: 2}]
export: {pick: best, formats: [huggingface, train_yaml, model_card]}
"""
CONTINUE = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

assert "kdnas" not in sys.modules or sys.modules["kdnas"] is None
folder = sys.argv[1]
tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
given = tokenizer("Once there was", return_tensors="pt")
made = network.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
print(json.dumps([sum(p.numel() for p in network.parameters()), tokenizer.decode(made[0])]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose teacher, a GPT-2 of three small layers, has learnt the tales by heart, more or less."""
    from kdnas.tokenizing import train_tokenizer

    root = tmp_path_factory.mktemp("tales")
    (root / "study.yaml").write_text(STUDY)
    (root / "train.txt").write_text(TALES)
    (root / "test.txt").write_text(TALES[:1500])
    train_tokenizer("bytes", (), root / "teacher", vocabulary=257, purpose="running")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=257, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    model = transformers.GPT2LMHeadModel(config)
    data = DATASETS.build(
        "text_corpus", root, root / "cache", train="train.txt", test="test.txt", tokenizer="teacher", length=32
    )
    parts = (data.train.inputs["tokens"], data.train.targets)
    tokens, targets = (torch.from_numpy(part.astype("int64")) for part in parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        few = torch.arange(16 * step, 16 * step + 16) % len(tokens)
        optimizer.zero_grad()
        cross_entropy(model(tokens[few]).logits.flatten(0, 1), targets[few].flatten()).backward()
        optimizer.step()
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(root / "teacher")
    (root / "teacher/chat_template.jinja").write_text("{{ messages[0].content }}")
    words = [{"context": f"Once there was a king who had {n} sons, and one day they went", "target": "away."}
             for n in range(3)]  # fmt: skip
    asked = [{"question": "who went away?", "answers": ["they"]}] * 3
    for name, items in (("last", words), ("asked", asked)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)))
    return root


@pytest.mark.slow
def test_a_search_ends_in_a_folder_that_continues_texts(folder: Path) -> None:
    from cut_students import run_without_kdnas

    run = search_study(load_study(folder), folder / "run", data_root=folder, observe=lambda event: None)
    assert [trial.state for trial in run.trials] == ["complete"] * 2
    assert run.teacher is not None
    worst = run.lock.reference_point["perplexity"]
    assert all(1 < trial.values["perplexity"] < worst / 2 for trial in run.trials)
    params, text = run_without_kdnas(CONTINUE, folder / "run/export/huggingface")
    assert text.startswith("Once there was")
    card = (folder / "run/export/MODEL_CARD.md").read_text()
    assert "It reads blocks of" in card
    assert "on other text it may be much worse" in card
    assert "| on | mean perplexity |" in card
    best = min(repeat.score for trial in run.trials for repeat in trial.repeats)
    assert f"(validation perplexity {run.score.shown(best)}" in card
    assert params <= run.teacher.values["params"]
    assert run.teacher_further.keys() == {"last", "questions"}
    for repeat in run.trials[0].repeats or run.trials[1].repeats:
        assert all(0 <= share <= 1 for share in repeat.further.values())
        assert repeat.further.keys() == run.teacher_further.keys()
    assert "| last |" in card
    assert "Further scores on the test split" in (folder / "run/report.html").read_text()
    out = folder / "run/export/huggingface"
    assert json.loads((out / "generation_config.json").read_text())["repetition_penalty"] == 1.25
    assert (out / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    per_byte = run.lock.data.statistics["bytes_per_token"][0]
    assert f"the teacher {bits_per_byte(run.teacher.score, per_byte):.3f}" in bits_in_words(run)


@pytest.mark.slow
def test_completions_are_objectives_where_a_study_names_them(folder: Path) -> None:
    settings = ["objectives=[perplexity, endings, last, params]", "final.completions=[last.jsonl, endings.jsonl]"]
    endings = {"context": "Once there was a king who had", "endings": ["one wife", "2 sons"], "label": 1}
    (folder / "endings.jsonl").write_text("\n".join([json.dumps(endings)] * 4))
    run = search_study(load_study(folder, settings), folder / "searched", data_root=folder, observe=lambda event: None)
    assert [run.lock.reference_point[name] for name in ("endings", "last")] == [0.5, 0.0]
    assert {one.name: one.kind for one in run.objectives}["endings"] == "trained"
    assert run.teacher is not None
    assert 0 <= run.teacher.values["last"] <= 1
    assert all({"last", "endings"} <= trial.values.keys() for trial in run.trials)
    (member,) = (one for one in candidates(run) if one.trial.repeats)
    for name in ("last", "endings"):  # of the front's students what their retrainings complete, not their brief ones
        assert member.values[name] == fmean(repeat.further[name] for repeat in member.trial.repeats)
    assert "endings" in (folder / "searched/front.csv").read_text().splitlines()[0]


def test_a_completion_cannot_be_called_like_another_quantity(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"final\.completions\.0\.name.*'params' is the name of another quantity"):
        load_study(folder, ["final.completions=[{file: last.jsonl, name: params}]"])
    with pytest.raises(ConfigError, match=r"final\.completions\.1\.name.*'params' is the name of another quantity"):
        load_study(folder, ["final.completions=[{file: last.jsonl, first: 0}, {file: last.jsonl, name: params}]"])
    with pytest.raises(ConfigError, match=r"no quantity is called 'words'.*last, questions"):
        load_study(folder, ["objectives=[perplexity, words]"])


def test_bits_per_byte_are_those_of_the_shared_teacher() -> None:
    assert bits_per_byte(70.76, 3.8884) == pytest.approx(1.5799, abs=1e-3)  # its train_info.json
    assert bits_per_byte(2.0**6, 4.0) == 1.5
