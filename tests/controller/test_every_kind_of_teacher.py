"""Students of every kind of teacher that users bring: shown, the teacher itself when whole, searched, and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import torchvision
import transformers
from cut_students import TEXTS, run_without_kdnas
from fitted_heads import digits, fit_head
from safetensors.torch import save_file
from torch import nn

from kdnas.api import load_run
from kdnas.cli.main import main
from kdnas.nn.cutting import TOLERANCE, Depth, in_order, inside, outputs
from kdnas.workshop.afterwards import open_run

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
FORMS = {"vit_tiny": "timm", "hf_vit": "huggingface"}
UNIFORM = {"inner", "depth"}
QUICK = ["vit_tiny"]
OPENERS = {
    "timm": """
import timm
network = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True)
""",
    "huggingface": """
import transformers
network = getattr(transformers, auto).from_pretrained(folder / "huggingface")
""",
    "student_py": """
sys.path.insert(0, str(folder))
from student import load_student
network = load_student(folder / "student.safetensors")
""",
}
"""Of exports, without kdnas."""
ANSWER = """
import json, sys, torch
from pathlib import Path
folder, auto = Path(sys.argv[1]), sys.argv[2]
{opener}
fed = torch.load(folder / "fed.pt", weights_only=True)
with torch.no_grad():
    answers = network.eval()(*fed)
print(json.dumps(getattr(answers, "logits", answers).tolist()))  # as its library answers
"""


def checked(run: Path, root: Path, form: str, auto: str = "") -> None:
    """Assert of a finished run that the whole student is the teacher, that a cut one is as a masked one, and that the
    export is the retrained student to whoever has no kdnas."""
    found = load_run(run, data_root=root)
    assert [trial.state for trial in found.record.trials] == ["complete"] * 4
    (best,) = (trial for trial in found.record.trials if trial.repeats)

    workshop = open_run(found.record, data_root=root, cache=root / "cache")
    family, (raw, _) = workshop.family, workshop.samples(8)
    whole = family.inherit(family.canonical({})).eval()
    with torch.no_grad():
        assert torch.equal(whole(*raw), workshop.teacher.module(*raw))
    exact = [part for part in family.anatomy.parts if isinstance(part, Depth) or not part.inexact]
    halves = {p.name: max(p.least, (len(p.blocks) if isinstance(p, Depth) else p.size) // 2) for p in exact}
    kept = family.anatomy.prefix(halves)
    inner, example = family._opened
    cut, masked = (outputs(change(inner, kept).eval(), example) for change in (family.anatomy.cut, family.anatomy.mask))
    assert float((cut - masked).abs().max() / masked.abs().max()) <= TOLERANCE

    network, fed = inside(found.student(best.arch.arch_id), raw if len(raw) > 1 else raw[0])
    expected = outputs(network, fed)
    torch.save(in_order(fed), run / "export" / "fed.pt")
    there = torch.tensor(run_without_kdnas(ANSWER.format(opener=OPENERS[form]), run / "export", auto))
    assert there.shape == expected.shape
    assert float((there - expected).abs().max() / expected.abs().max()) < 1e-5


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
    form = FORMS.get(name, "student_py")
    if form != "student_py":  # one size for all layers is what its library's own form tells
        space = "width: 1, heads: 1, inner: [0.5, 1], depth: [0.5, 1], granularity: network"
    text = STUDY.format(teacher=kind.teacher, space=space, formats=f"safetensors, {form}")
    (tmp_path / "study.yaml").write_text(text)
    run = tmp_path / "run"

    assert main(["spaces", "show", str(tmp_path), "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(choice in shown for choice in kind.choices & UNIFORM if form != "student_py")
    assert form != "student_py" or all(choice in shown for choice in kind.choices)
    assert main(["search", str(tmp_path), "--out", str(run), "--data-root", str(tmp_path)]) == 0
    checked(run, tmp_path, form, "AutoModelForImageClassification")


ROAD = (
    "training.epochs=1",
    "training.batch_size=32",
    "training.data_fraction=1.0",
    "space={derive: teacher, width: 1, heads: 1}",
    "sampler=random",
    "tune={}",
    "executor={type: local, workers: 1}",
    "budget={trials: 4}",
    "final={seeds: 1, max_students: 1, control: false}",
    "export={formats: [safetensors, huggingface]}",
)
"""What is searched less than `kdnas init` proposes, and that it opens as a folder of its library."""


@pytest.mark.parametrize("name", ["bert", pytest.param("distilbert", marks=pytest.mark.slow)])
def test_students_of_a_teacher_that_tells_kinds_of_texts(name, tmp_path, capsys):
    from kdnas.tokenizing import train_tokenizer

    words = {"good": ("king", "queen", "son"), "bad": ("wolf", "witch", "thief")}
    rows = [f"{kind},a {kind} {who} {n % 7}" for n in range(40) for kind, whom in words.items() for who in whom]
    (tmp_path / "train.csv").write_text("\n".join(["label,text", *rows]) + "\n")
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

    root, run = ("--data-root", str(tmp_path)), tmp_path / "run"
    mine = ["init", str(tmp_path / "study"), "--data", "train.csv", "--teacher", "teacher", "--from-teacher", *root]
    assert main(mine) == 0
    assert main(["spaces", "show", str(tmp_path / "study"), *root]) == 0
    shown = capsys.readouterr().out
    assert all(choice in shown for choice in ("depth", "inner", "heads", "width"))
    changes = [f"--set={change}" for change in ROAD]
    assert main(["search", str(tmp_path / "study"), "--out", str(run), *root, *changes]) == 0
    checked(run, tmp_path, "huggingface", "AutoModelForSequenceClassification")


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
export: {formats: [safetensors, huggingface]}
"""
TALES = "".join(f"= {n} =\nOnce there was a king who had {n} sons, and one day they went away.\n" for n in range(60))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen"])
def test_students_of_a_teacher_that_writes_text(name, tmp_path, capsys):
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
    assert main(["spaces", "show", str(tmp_path), "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "depth" in shown
    assert "inner" in shown
    assert main(["search", str(tmp_path), "--out", str(tmp_path / "run"), "--data-root", str(tmp_path)]) == 0
    checked(tmp_path / "run", tmp_path, "huggingface", "AutoModelForCausalLM")
