"""Students of every kind of teacher that users bring: shown, the teacher itself when whole, searched, and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from cut_students import TEXTS, run_without_kdnas
from fitted_heads import digits, fit_head
from safetensors.torch import save_file
from torch import nn

from kdnas.cli.main import main
from kdnas.nn.cutting import TOLERANCE, Depth, outputs
from kdnas.session import search_study
from kdnas.study.loading import load_study
from kdnas.workshop.opening import open_run

STUDY = """\
name: kind
data: {{type: digits}}
teacher: {teacher}
space: {{derive: teacher, {space}}}
objectives: [accuracy, macs]
costs: {{}}
training: {{epochs: 1, batch_size: 64, learning_rate: 0.001, data_fraction: 0.15}}
sampler: random
executor: {{type: local, workers: 1}}
budget: {{trials: 4}}
final: {{seeds: 1, data_fraction: 0.15, max_students: 1, control: false}}
export: {{formats: [{formats}]}}
"""
SIDE = 32
LABELS = {"id2label": {n: str(n) for n in range(10)}, "label2id": {str(n): n for n in range(10)}}


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    head: str
    """Of the classes."""
    teacher: str
    choices: set[str]
    """Some of what is searched."""


def of_timm(model: str, head: str, *choices: str, **arguments: object) -> Kind:
    stated = json.dumps(arguments)
    mean = "mean: [77.8, 77.8, 77.8], std: [95.9, 95.9, 95.9], input_size: 32"
    teacher = f"{{type: timm, model: {model}, weights: w.safetensors, arguments: {stated}, {mean}}}"
    return Kind(lambda: timm.create_model(model, num_classes=10, **arguments), head, teacher, set(choices))


def hf_vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, **LABELS)
    return transformers.ViTForImageClassification(config)


def hf_swin() -> nn.Module:
    sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, image_size=SIDE, **LABELS))


HUGGING_FACE = "{type: huggingface, model: folder, input_size: 32, mean: [77.8, 77.8, 77.8], std: [95.9, 95.9, 95.9]}"
SWIN = {"img_size": SIDE, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
KINDS = {
    "resnet18": of_timm("resnet18", "fc", "stage1.width", "stage1.inner", "stage1.depth", zero_init_last=False),
    "mobilenetv3": of_timm("mobilenetv3_small_050", "classifier", "stage1.width", "head.width"),
    "efficientnet_lite0": of_timm("tf_efficientnet_lite0", "classifier", "stage1.width", "stage2.inner"),
    "convnext_atto": of_timm("convnext_atto", "head.fc", "stage1.width", "stage1.depth"),
    "vit_tiny": of_timm("vit_tiny_patch16_224", "head", "width", "heads", "inner", "depth", **VIT),
    "mobilenet_v2": Kind(
        lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
        "classifier.1",
        "{type: torchvision, model: mobilenet_v2, weights: w.safetensors, arguments: {width_mult: 0.35}, "
        "input_size: 32, mean: [77.8, 77.8, 77.8], std: [95.9, 95.9, 95.9]}",
        {"stage1.width", "stage2.inner"},
    ),
    "hf_vit": Kind(
        hf_vit,
        "classifier",
        HUGGING_FACE,
        {"width", "heads", "inner", "depth"},
    ),
    "swin": of_timm("swin_tiny_patch4_window7_224", "head.fc", "stage1.width", "stage1.heads", "stage2.inner", **SWIN),
    "hf_swin": Kind(hf_swin, "classifier", HUGGING_FACE, {"stage1.width", "stage1.heads", "stage2.inner"}),
}
QUICK = ["vit_tiny"]
OPENED = """
import torch, json, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from student import load_student
student = load_student(folder / "student.safetensors")
images = torch.load(folder / "images.pt", weights_only=True)
with torch.no_grad():
    answers = student(images)
    print(json.dumps(getattr(answers, "logits", answers).tolist()))  # as its library answers
"""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_students_of_a_teacher_that_sees_images(name, tmp_path, capsys):
    kind = KINDS[name]
    torch.manual_seed(0)
    images, labels = digits(SIDE)
    network = kind.make()
    with torch.no_grad():  # batch norms see what flows through them
        for part in network.modules():
            part.momentum = None if isinstance(part, nn.modules.batchnorm._BatchNorm) else getattr(part, "momentum", 0)
        network.train()(images[:100])
    fit_head(network, kind.head, [images], labels)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(tmp_path / "folder")
    space = "width: [0.5, 1], inner: [0.5, 1], heads: [0.5, 1], depth: [0.5, 1]"
    text = STUDY.format(teacher=kind.teacher, space=space, formats="safetensors, student_py")
    (tmp_path / "study.yaml").write_text(text)

    assert main(["spaces", "show", str(tmp_path), "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(choice in shown for choice in kind.choices)

    found = search_study(load_study(tmp_path), tmp_path / "run", data_root=tmp_path, observe=lambda event: None)
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    assert any(trial.repeats for trial in found.trials)

    workshop = open_run(found, data_root=tmp_path, cache=tmp_path / "cache")
    family, raw = workshop.family, workshop.samples(8)[0][0]
    with torch.no_grad():
        assert torch.equal(family.inherit(family.canonical({})).eval()(raw), workshop.teacher.module(raw))
    exact = [part for part in family.anatomy.parts if isinstance(part, Depth) or not part.inexact]
    halves = {p.name: max(p.least, (len(p.blocks) if isinstance(p, Depth) else p.size) // 2) for p in exact}
    kept = family.anatomy.prefix(halves)
    inner, fed = family._opened
    cut, masked = (outputs(change(inner, kept).eval(), fed) for change in (family.anatomy.cut, family.anatomy.mask))
    assert float((cut - masked).abs().max() / masked.abs().max()) <= TOLERANCE

    folder = tmp_path / "run" / "export"
    torch.save(fed, folder / "images.pt")
    there = np.array(run_without_kdnas(OPENED, folder))
    assert there.shape == (2, 10)
    assert np.isfinite(there).all()


CLASSES = """\
name: texts
data: {type: text_table, train: train.csv, test: train.csv, tokenizer: teacher, length: 24, validation_fraction: 0.25}
teacher: {type: sequence_classifier, model: teacher}
space: {derive: teacher, width: 1, heads: 1}
objectives: [accuracy, macs]
costs: {}
training: {epochs: 1, batch_size: 32, optimizer: adamw, learning_rate: 0.001}
sampler: random
executor: {type: local, workers: 1}
budget: {trials: 3}
final: {seeds: 1, max_students: 1, control: false}
export: {formats: [huggingface]}
"""
OPEN_CLASSES = """
import json, sys, transformers
network = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
texts = tokenizer(["a good king 3", "a bad wolf 4"], return_tensors="pt", padding=True, return_token_type_ids=False)
answers = network(**texts).logits.argmax(1).tolist()
print(json.dumps([sum(parameter.numel() for parameter in network.parameters()), answers]))
"""


@pytest.mark.parametrize("name", ["bert"])
def test_students_of_a_teacher_that_tells_kinds_of_texts(name, tmp_path):
    from kdnas.tokenizing import train_tokenizer

    words = {"good": ("king", "queen", "son"), "bad": ("wolf", "witch", "thief")}
    rows = [f"{kind},a {kind} {who} {n % 7}" for n in range(40) for kind, whom in words.items() for who in whom]
    (tmp_path / "train.csv").write_text("\n".join(["label,text", *rows]) + "\n")
    (tmp_path / "study.yaml").write_text(CLASSES)
    texts = [row.partition(",")[2] for row in rows]
    train_tokenizer("bpe", texts, tmp_path / "teacher", vocabulary=300, purpose="labelled")
    made, _ = TEXTS[name]()
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "num_labels": 2, "vocab_size": 300}
    config = type(made.config).from_dict({**made.config.to_dict(), **names})
    network = type(made)(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    fed = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    labels = torch.tensor([int(row.startswith("good")) for row in rows])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        network(**fed, labels=labels).loss.backward()
        optimizer.step()
    network.save_pretrained(tmp_path / "teacher")
    found = search_study(load_study(tmp_path), tmp_path / "run", data_root=tmp_path, observe=lambda event: None)
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    assert any(trial.repeats for trial in found.trials)
    count, answers = run_without_kdnas(OPEN_CLASSES, tmp_path / "run" / "export" / "huggingface")
    assert count in {trial.values["params"] for trial in found.trials}
    assert answers == [1, 0]


LM = """\
name: lm
data: {type: text_corpus, train: train.txt, test: test.txt, tokenizer: teacher, length: 16}
teacher: {type: causal_lm, model: teacher}
space: {derive: teacher, width: 1}
objectives: [perplexity, macs]
costs: {}
training: {epochs: 1, batch_size: 32, learning_rate: 0.01}
sampler: random
start: supernet
supernet: {epochs: 1, shrinking: {policy: sandwich, subnets: 3}}
executor: {type: local, workers: 1}
budget: {trials: 4}
final: {seeds: 1, max_students: 1, control: false}
export: {formats: [huggingface]}
"""
TALES = "".join(f"= {n} =\nOnce there was a king who had {n} sons, and one day they went away.\n" for n in range(60))
STOCK = """
import json, sys, transformers
network = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps(sum(parameter.numel() for parameter in network.parameters())))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen"])
def test_students_of_a_teacher_that_writes_text(name, tmp_path):
    from tokenizers import Tokenizer

    from kdnas.tokenizing import train_tokenizer

    (tmp_path / "train.txt").write_text(TALES)
    (tmp_path / "test.txt").write_text(TALES[:600])
    stock = "width: 1, heads: 1" if name == "gpt2" else "width: 1"  # its stock class has no fewer heads at full width
    (tmp_path / "study.yaml").write_text(LM.replace("width: 1", stock))
    train_tokenizer("bytes", (), tmp_path / "teacher", vocabulary=257, purpose="running")
    made, _ = TEXTS[name]()
    network = type(made)(type(made.config).from_dict({**made.config.to_dict(), "vocab_size": 257}))
    tokens = Tokenizer.from_file(str(tmp_path / "teacher" / "tokenizer.json")).encode(TALES).ids[:4096]
    blocks, optimizer = torch.tensor(tokens).reshape(-1, 16), torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        network(input_ids=blocks, labels=blocks).loss.backward()
        optimizer.step()
    network.save_pretrained(tmp_path / "teacher")
    found = search_study(load_study(tmp_path), tmp_path / "run", data_root=tmp_path, observe=lambda event: None)
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    assert any(trial.repeats for trial in found.trials)
    count = run_without_kdnas(STOCK, tmp_path / "run" / "export" / "huggingface")
    assert count in {trial.values["params"] for trial in found.trials}
