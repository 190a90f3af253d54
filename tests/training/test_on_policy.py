"""Students that learn from what they write: what is written, what is learnt of it, and who is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdnas.core.text import CorpusData
from kdnas.datasets import DATASETS
from kdnas.errors import ConfigError
from kdnas.nn.decoding import continued
from kdnas.nn.pieces import LogitsOf
from kdnas.nn.taps import with_taps
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.loop import EpochRecord, distil
from kdnas.training.on_policy import Writer, Written
from kdnas.training.recipe import Distillation, OnPolicy, Recipe, Training
from kdnas.workshop.loss_check import check_losses

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
CPU = torch.device("cpu")
LENGTH = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CorpusData:
    root = tmp_path_factory.mktemp("tales")
    for name in ("train", "test"):
        (root / f"{name}.txt").write_text("Once there was a king who had 3 sons.\n" * 30)
    found: CorpusData = DATASETS.build(
        "text_corpus", root, root / "cache", train="train.txt", test="test.txt", tokenizer="bytes", length=LENGTH
    )
    return found


def model(data: CorpusData, seed: int, layers: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=layers, n_head=2, vocab_size=data.vocabulary, n_positions=32, initializer_range=0.3,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return LogitsOf(transformers.GPT2LMHeadModel(config), use_cache=False)


def trained(data: CorpusData, student: nn.Module, distillation: Distillation, **training: Any) -> list[EpochRecord]:
    teacher = Teacher("teacher", model(data, 1, 2).eval().requires_grad_(False), (), None, "t")
    batches = Batches(data, torch.arange(8).numpy(), device=CPU)
    stated = {"epochs": 1, "batch_size": 4, "precision": "float32", "learning_rate": 1e-3, **training}
    recipe = Recipe(training=Training(optimizer="adamw", **stated), distillation=distillation)
    return list(
        distil(with_taps(student, (), None), teacher, batches, None, recipe, data=data, seed=0, device=CPU).history
    )


def gkd(student: Tensor, teacher: Tensor, counted: Tensor, beta: float) -> Tensor:
    """Return the loss of TRL's trainer: its generalised JSD of logits [B, T, V], over the tokens that count."""
    ours, theirs = (F.log_softmax(logits, dim=-1) for logits in (student, teacher))
    betas = torch.tensor(beta)
    mixed = torch.logsumexp(torch.stack([ours + torch.log(1 - betas), theirs + torch.log(betas)]), dim=0)
    to_teacher = F.kl_div(mixed, theirs, reduction="none", log_target=True)
    to_student = F.kl_div(mixed, ours, reduction="none", log_target=True)
    jsd = beta * to_teacher + (1 - beta) * to_student
    return jsd[counted > 0].sum() / counted.sum()


def test_the_loss_is_that_of_the_authors_on_what_the_student_wrote(
    data: CorpusData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Written] = []
    states: list[dict[str, Tensor]] = []
    student = model(data, 0)
    write = Writer.__call__

    def watched(self: Writer, step: int, network: nn.Module, inputs: tuple[Tensor, ...]) -> Written | None:
        states.append(copy.deepcopy(student.state_dict()))
        written = write(self, step, network, inputs)
        assert written is not None
        assert torch.equal(written.inputs[0][:, :5], inputs[0][:, :5])
        seen.append(written)
        return written

    monkeypatch.setattr(Writer, "__call__", watched)
    losses = ({"type": "jensen_shannon", "beta": 0.3, "weight": 1.0},)
    distillation = Distillation.model_validate(
        {"task_weight": 0.5, "losses": losses, "on_policy": {"share": 1.0, "prompt": 5}}
    )
    (record,) = trained(data, student, distillation)
    again, teacher = model(data, 0).eval(), model(data, 1, 2).eval()
    expected = []
    for state, written in zip(states, seen, strict=True):
        again.load_state_dict(state)
        (tokens,) = written.inputs
        assert torch.equal(written.targets[:, :-1], tokens[:, 1:])
        assert written.counted.sum(dim=1).tolist() == [LENGTH + 1 - 5] * 4
        with torch.no_grad():
            expected.append(gkd(again(tokens), teacher(tokens), written.counted, 0.3))
    assert record.loss == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_a_share_of_the_batches_is_written_and_the_same_ones_again(data: CorpusData) -> None:
    class Nobody:
        def live(self, inputs: tuple[Tensor, ...]) -> Any:
            return None

    student, blocks = model(data, 0).eval(), (torch.arange(3 * LENGTH).view(3, LENGTH) % 50,)
    writer = Writer(OnPolicy(share=0.3), Nobody(), seed=3, device=CPU, bfloat16=False)
    written = [writer(step, student, blocks) for step in range(60)]
    assert 8 <= sum(one is not None for one in written) <= 28
    step = next(step for step, one in enumerate(written) if one is not None)
    again, first = writer(step, student, blocks), written[step]
    assert again is not None
    assert first is not None
    assert torch.equal(again.inputs[0], first.inputs[0])
    assert torch.equal(first.inputs[0][:, :4], blocks[0][:, :4])  # a quarter is given


def test_what_is_written_with_a_cache_is_what_is_written_without(data: CorpusData) -> None:
    class Plain(nn.Module):
        """Hides that the network keeps a cache."""

        def __init__(self, network: nn.Module):
            super().__init__()
            self.answer = [network]

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.answer[0](tokens)
            return logits

    network, context = model(data, 0).eval(), torch.arange(6).view(2, 3)
    texts = [
        continued(one, context, 9, lambda logits: logits.argmax(1, keepdim=True)) for one in (network, Plain(network))
    ]
    assert texts[0].shape == (2, 12)
    assert torch.equal(*texts)
    assert not network.training


def test_training_goes_on_with_and_without_labels(data: CorpusData) -> None:
    losses = ({"type": "jensen_shannon", "weight": 1.0},)
    plain = Distillation.model_validate({"task_weight": 0.1, "losses": losses, "on_policy": {"share": 0.5}})
    history = trained(data, model(data, 0), plain, epochs=12, learning_rate=0.01)
    assert history[-1].loss < 0.8 * history[0].loss
    assert "on_policy" not in Distillation.model_validate({"losses": losses}).model_dump()


def test_who_cannot_write_is_refused(data: CorpusData) -> None:
    with pytest.raises(ValueError, match="no loss learns of a teacher"):
        Distillation.model_validate({"losses": [{"type": "kd", "weight": 1.0, "of": "self"}], "on_policy": {}})
    teacher = Teacher("teacher", model(data, 1).eval(), (), None, "t")
    losses = [{"type": "kd", "weight": 1.0}]
    recipe = Recipe(distillation=Distillation.model_validate({"losses": losses, "on_policy": {"prompt": LENGTH}}))
    with pytest.raises(ConfigError, match=r"on_policy\.prompt: takes 16 tokens, and blocks have 16"):
        check_losses(recipe, teacher, {}, data, device=CPU)
    from kdnas.testing.teachers import random_data

    with pytest.raises(ConfigError, match="students write texts"):
        check_losses(recipe, teacher, {}, random_data(), device=CPU)
