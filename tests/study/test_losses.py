"""Losses as the command line spells them."""

from __future__ import annotations

import pytest

from kdnas.errors import ConfigError
from kdnas.study.losses import loss_name, parse_losses
from kdnas.training.recipe import Distillation, LossTerm

STUDY = Distillation(task_weight=0.2, losses=(LossTerm(type="kd", weight=0.8, temperature=3),))


def test_the_studys_own_loss_is_recognised():
    assert parse_losses(["kd"], STUDY) == {"": STUDY}
    assert loss_name(STUDY) == "kd"
    two = Distillation(losses=(*STUDY.losses, LossTerm(type="attention", weight=1000)))
    assert loss_name(two) == "kd + attention"
    assert parse_losses(["kd"], two)["kd"].losses == STUDY.losses
    assert loss_name(Distillation(task_weight=1, losses=())) == "ce"


def test_cross_entropy_has_no_teacher():
    assert parse_losses(["ce"], STUDY) == {"ce": Distillation(task_weight=1.0, losses=())}
    assert parse_losses(["ce"], Distillation(task_weight=1.0, losses=())).keys() == {""}


def test_a_bare_loss_weighs_what_the_studys_losses_weigh():
    (loss,) = parse_losses(["dkd"], STUDY).values()
    assert (loss.task_weight, loss.losses[0].weight) == (0.2, 0.8)


def test_a_bare_loss_on_features_weighs_what_its_authors_gave_it():
    for name, weight in {"attention": 1000, "similarity": 3000, "hint": 100, "rkd": 1}.items():
        (loss,) = parse_losses([name], STUDY).values()
        assert (loss.task_weight, loss.losses[0].weight) == (0.2, weight)
    stated = Distillation(losses=(LossTerm(type="dkd", weight=2, warmup_fraction=0.1, temperature=2),))
    assert parse_losses(["dkd"], stated)[""] == stated


def test_yaml_states_options_and_weights():
    losses = parse_losses(["{type: kd, temperature: 8, task_weight: 0.5}", "dkd"], STUDY)
    assert list(losses) == ["kd task_weight=0.5 temperature=8", "dkd"]
    first = losses["kd task_weight=0.5 temperature=8"]
    assert (first.task_weight, first.losses[0].weight, first.losses[0].options) == (0.5, 0.8, {"temperature": 8})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kdd", "no loss is called 'kdd'"),
        ("{weight: 1}", "is no loss"),
        ("[kd]", "is no loss"),
        ("{type: ce, weight: 2}", "takes no options"),
        ("{type: kd, weight: -1}", "weight"),
        ("{type: kd, temprature: 3}", "temprature"),
        ("{type: kd, task_weight: x}", "task_weight"),
        ("{type: kd", "--loss"),
    ],
)
def test_what_is_no_loss_is_told(text, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_losses([text], STUDY)


def test_every_wrong_loss_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_losses(["kdd", "ce", "nope"], STUDY)
    assert [problem.where for problem in caught.value.problems] == ["--loss kdd", "--loss nope"]
