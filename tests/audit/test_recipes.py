"""What `--vary` makes of one recipe: every combination once, and what is wrong with it in words."""

from __future__ import annotations

import pytest

from kdnas.audit.recipes import Vary, parse_vary, varied
from kdnas.errors import ConfigError
from kdnas.training.recipe import Distillation, LossTerm, Recipe, training_for

BASE = Recipe(
    training=training_for("image_classification")(epochs=3, learning_rate=0.1),
    distillation=Distillation(task_weight=0.2, losses=(LossTerm(type="kd", weight=0.8, temperature=3.0),)),
)


def recipes(*texts: str) -> dict[str, Recipe]:
    return varied(BASE, [parse_vary(text) for text in texts])


def test_commas_in_brackets_part_no_values() -> None:
    found = parse_vary("distillation.losses=kd, {type: dkd, weight: 2},hint")
    assert found == Vary("distillation.losses", ("kd", "{type: dkd, weight: 2}", "hint"))


def test_losses_take_the_place_of_the_studys() -> None:
    found = recipes("distillation.losses=kd,ce,dkd,hint,kd+cosine")
    assert list(found) == ["kd", "ce", "dkd", "hint", "kd+cosine"]
    assert found["kd"] == BASE
    assert found["ce"].distillation.losses == ()
    assert found["ce"].distillation.task_weight == 1.0
    assert found["dkd"].distillation.losses == (LossTerm(type="dkd", weight=0.8),)  # what the study's weigh together
    assert found["hint"].distillation.losses == (LossTerm(type="hint", weight=100.0),)  # its authors'
    assert [term.type for term in found["kd+cosine"].distillation.losses] == ["kd", "cosine"]
    assert all(recipe.training == BASE.training for recipe in found.values())


def test_every_combination_is_there_once() -> None:
    """The temperature is one of the losses that have one; what a loss has not leaves it as it is."""
    found = recipes("distillation.temperature=1,4", "distillation.losses=kd,hint", "training.learning_rate=0.1,0.2")
    assert set(found) == {
        *(f"kd temperature={t} learning_rate={rate}" for t in (1, 4) for rate in ("0.1", "0.2")),
        *(f"hint learning_rate={rate}" for rate in ("0.1", "0.2")),
    }
    one = found["kd temperature=4 learning_rate=0.2"]
    assert one.distillation.losses[0].options == {"temperature": 4}
    assert one.training.learning_rate == 0.2
    assert one.distillation.task_weight == 0.2


def test_weights_and_places_of_losses_are_settings_too() -> None:
    found = recipes("distillation.weight=0.5,0.8", "distillation.losses.0.temperature=3,4")
    weights = {
        (r.distillation.losses[0].weight, r.distillation.losses[0].options["temperature"]) for r in found.values()
    }
    assert weights == {(0.5, 3), (0.5, 4), (0.8, 3), (0.8, 4)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["training.epochs=1,2"], "recipes are compared on one budget"),
        (["learning_rate=1,2"], "is no setting of a recipe"),
        (["distillation.losses"], "is not key=value,value"),
        (["distillation.losses=kd,,dkd"], "is not key=value,value"),
        (["distillation.losses=kd,nope"], "no loss is called 'nope'"),
        (["distillation.losses=kd,ce", "distillation.beta=0.1"], "no loss of these recipes has such an option"),
        (["distillation.temperature=-1,4"], "temperature of kd: must be above 0"),
        (["training.learning_rate=fast,0.1"], "training.learning_rate: must be a number"),
        (["training.wings=1"], "training.wings"),
        (["distillation.losses.3.weight=1"], "no loss of these recipes has such an option"),
        (["distillation.task_weight=1", "distillation.task_weight=2"], "is varied twice"),
        (["distillation.losses=kd,kd+ce"], "ce in a sum"),
        (["distillation.losses=kd,hint+{type: kd, task_weight: 1}"], "the labels' weight is stated"),
    ],
)
def test_what_is_wrong_is_told_with_the_setting(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes(*texts)
