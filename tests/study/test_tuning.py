from __future__ import annotations

import pytest
from trained_run import study_config

from kdnas.errors import ConfigError
from kdnas.study.teachers import teacher_problems
from kdnas.study.tuning import Tuning, final_recipe, recipes_to_try, tunable_problems, tuned_recipe
from kdnas.training.recipe import Distillation, Recipe, training_for, with_training


@pytest.fixture
def recipe() -> Recipe:
    losses = [{"type": "kd", "weight": 0.9}, {"type": "cosine", "weight": 0.5}]
    distillation = Distillation(task_weight=0.1, losses=losses)
    return Recipe(training=training_for("image_classification")(), distillation=distillation)


def test_each_kind_of_setting_is_replaced_and_nothing_else(recipe: Recipe) -> None:
    changed = tuned_recipe(
        recipe,
        {
            "training.learning_rate": 0.02,
            "training.augmentation.mixup": 0.3,
            "training.clip_norm": 5.0,
            "distillation.task_weight": 0.25,
            "distillation.losses.0.temperature": 2.0,
            "distillation.losses.1.weight": 0.75,
        },
    )
    assert changed.training.learning_rate == 0.02
    assert changed.training.augmentation.mixup == 0.3
    assert changed.training.clip_norm == 5.0
    assert changed.distillation.task_weight == 0.25
    assert changed.distillation.losses[0].options == {"temperature": 2.0}
    assert [term.weight for term in changed.distillation.losses] == [0.9, 0.75]
    assert changed.training.epochs == recipe.training.epochs
    assert recipe.training.learning_rate == 0.1


def test_nothing_tuned_is_the_same_recipe(recipe: Recipe) -> None:
    assert tuned_recipe(recipe, {}) == recipe


def test_all_unknown_settings_are_named_at_once(recipe: Recipe) -> None:
    paths = ["training.lr", "distillation.losses.2.weight", "distillation.losses.0.warmth", "speed", "training"]
    with pytest.raises(ConfigError) as caught:
        tuned_recipe(recipe, dict.fromkeys(paths, 0.5))
    assert [problem.where for problem in caught.value.problems] == paths


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.momentum", 1.5),
        ("training.learning_rate", float("nan")),
        ("distillation.losses.0.temperature", -1.0),
        ("distillation.losses.0.weight", -1.0),
    ],
)
def test_values_out_of_range_are_refused(recipe: Recipe, path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=path.rpartition(".")[2]):
        tuned_recipe(recipe, {path: value})


def test_sound_ranges_have_no_problems() -> None:
    tune = {
        "training.learning_rate": {"low": 0.01, "high": 0.3, "log": True},
        "distillation.losses.0.temperature": {"low": 1, "high": 8},
        "distillation.task_weight": {"low": 0, "high": 1},
    }
    assert tunable_problems(study_config(tune=tune)) == []


@pytest.mark.parametrize(
    ("path", "low", "high", "what"),
    [
        ("training.lr", 0.1, 0.2, "no setting"),
        ("training.optimizer", 0.1, 0.2, "which values there are"),
        ("training.batch_size", 16, 32, "which values there are"),
        ("training.augmentation.flip", 0, 1, "which values there are"),
        ("training.threads", 1, 2, "once for the whole run"),
        ("distillation.teacher_top_k", 1, 2, "once for the whole run"),
        ("distillation.losses", 0, 1, "has no order"),
        ("training.epochs", 1, 5, "same for every trial"),
        ("training.data_fraction", 0.1, 0.5, "same for every trial"),
        ("training.augmentation", 0.1, 0.5, "is a section"),
        ("training.augmentation.random_resized_crop", 0.1, 0.5, "is a section"),
        ("training.augmentation.random_resized_crop.scale.2", 0.1, 0.5, "no setting"),
        ("training.augmentation.random_resized_crop.least_area", 0.1, 0.5, "no setting"),
        ("training.augmentation.rand_augment.ops", 1, 3, "which values there are"),
        ("training.augmentation.random_erasing.scale.0", 0.1, 0.5, "scale needs its lowest value first"),
        ("distillation.losses.0.type", 0.1, 0.5, "which values there are"),
        ("distillation.losses.9.weight", 0.1, 0.5, "no setting"),
        ("training.momentum", 0.5, 1.5, "must be below 1"),
    ],
)
def test_a_range_that_cannot_be_searched_is_named(path: str, low: float, high: float, what: str) -> None:
    (problem,) = tunable_problems(study_config(tune={path: {"low": low, "high": high}}))
    assert problem.where.startswith(f"tune.{path}")
    assert what in problem.what


def test_settings_inside_the_sections_of_augmentation_are_tuned(recipe: Recipe) -> None:
    crop, erase = "training.augmentation.random_resized_crop", "training.augmentation.random_erasing"
    changed = tuned_recipe(recipe, {f"{crop}.scale.0": 0.3, f"{erase}.probability": 0.25, f"{erase}.ratio.1": 2.0})
    augmentation = changed.training.augmentation
    assert augmentation.random_resized_crop is not None
    assert augmentation.random_erasing is not None
    assert augmentation.random_resized_crop.scale == (0.3, 1.0)
    assert augmentation.random_resized_crop.ratio == (3 / 4, 4 / 3)
    assert augmentation.random_erasing.probability == 0.25
    assert augmentation.random_erasing.ratio == (0.3, 2.0)
    assert augmentation.color_jitter is None
    # What a study states inside such a section stays, the tuned setting apart.
    stated = recipe.model_dump(mode="json")
    stated["training"]["augmentation"]["random_resized_crop"] = {"scale": [0.5, 0.9]}
    again = tuned_recipe(
        with_training(Recipe, type(recipe.training)).model_validate(stated), {f"{crop}.scale.0": 0.3}
    ).training.augmentation
    assert again.random_resized_crop is not None
    assert again.random_resized_crop.scale == (0.3, 0.9)


def test_an_unknown_setting_is_told_those_beside_it(recipe: Recipe) -> None:
    path = "training.augmentation.random_resized_crop.scal"
    (problem,) = tunable_problems(study_config(tune={path: {"low": 0.1, "high": 0.5}}))
    assert problem.allowed.split(", ") == [
        f"training.augmentation.random_resized_crop.{name}.{index}" for name in ("scale", "ratio") for index in (0, 1)
    ]


TUNE = {
    "distillation.losses": ["kd", "ce", {"type": "hint", "task_weight": 1}, "hint+kd"],
    "distillation.temperature": [1, 4],
    "distillation.losses.hint.weight": {"low": 1, "high": 200, "log": True},
    "training.optimizer": ["sgd", "adamw"],
}


def test_losses_are_tuned_with_the_settings_that_they_have() -> None:
    config = study_config(tune=TUNE)
    assert tunable_problems(config) == []
    assert config.tune["distillation.losses"][2] == "{type: hint, task_weight: 1}"
    values = {
        "distillation.losses": "hint+kd",
        "distillation.temperature": 4,
        "distillation.losses.hint.weight": 50,
        "training.optimizer": "adamw",
    }
    tuned = Tuning(config).of(values)
    assert tuned == values
    changed = tuned_recipe(config.recipe, tuned)
    assert changed.training.optimizer == "adamw"
    assert [term.weight for term in changed.distillation.losses] == [50, 0.5]  # the study gives kd 0.5
    assert changed.distillation.losses[1].options == {"temperature": 4}

    labels = Tuning(config).of({**values, "distillation.losses": "ce"})
    assert labels == {"distillation.losses": "ce", "training.optimizer": "adamw"}
    assert tuned_recipe(config.recipe, labels).distillation.losses == ()
    assert tuned_recipe(config.recipe, labels).distillation.task_weight == 1

    alone = Tuning(config).of({**values, "distillation.losses": "{type: hint, task_weight: 1}"})
    assert "distillation.temperature" not in alone
    assert alone["distillation.losses.hint.weight"] == 50.0


def test_finalists_may_learn_of_other_losses_than_the_search() -> None:
    own = {"task_weight": 1, "losses": [{"type": "hint"}]}
    config = study_config(tune={"distillation.losses": ["kd", "ce"]}, final={"seeds": 1, "distillation": own})
    for losses in ("kd", "ce"):
        recipe = final_recipe(config, {"distillation.losses": losses})
        assert [term.type for term in recipe.distillation.losses] == ["hint"]
    tuned = "tune.distillation.losses"
    assert [*recipes_to_try(config)] == [(tuned, "kd"), (tuned, "ce"), ("final", "")]
    wrong = study_config(final={"seeds": 1, "distillation": {"losses": [{"type": "kd", "of": "nobody"}]}})
    (problem,) = teacher_problems(wrong)
    assert problem.where == "final.distillation.losses.0.of"


def test_two_proposals_of_one_training_have_the_same_settings() -> None:
    tuning = Tuning(study_config(tune=TUNE))
    common = {"distillation.losses": "kd", "training.optimizer": "sgd", "distillation.temperature": 1}
    assert tuning.of({**common, "distillation.losses.hint.weight": 2}) == tuning.of(
        {**common, "distillation.losses.hint.weight": 150}
    )
    assert tuning.stated(common) == common
    assert tuning.stated({"distillation.losses": "kd", "training.optimizer": "sgd"}) is None
    assert tuning.stated({"training.optimizer": "sgd"}) is None


@pytest.mark.parametrize(
    ("path", "values", "what"),
    [
        ("distillation.losses", ["kd", "no_such"], "no_such"),
        ("distillation.losses", ["kd", {"type": "kd", "warmth": 2}], "warmth"),
        ("distillation.losses", ["kd", {"type": "kd", "of": "nobody"}], "nobody"),
        ("distillation.losses", ["kd", {"type": "kd", "of": "self"}], "at its least already"),
        ("distillation.warmth", [1, 2], "no setting"),
        ("distillation.losses.hint.weight", [1, 2], "no setting"),
        ("training.optimizer", ["sgd", "lion"], "must be"),
        ("training.batch_size", [0, 64], "at least 1"),
        ("training.precision", ["float32", "bfloat16"], "once for the whole run"),
    ],
)
def test_a_list_that_cannot_be_searched_is_named(path: str, values: list[object], what: str) -> None:
    (problem,) = tunable_problems(study_config(tune={path: values}))
    assert problem.where.startswith(f"tune.{path}")
    assert what in str(problem)


@pytest.mark.parametrize("values", [["kd"], ["kd", "kd"], [0.1, float("inf")], 3, "kd"])
def test_what_is_no_list_of_values_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="distillation"):
        study_config(tune={"distillation.losses": values})


@pytest.mark.parametrize(
    ("tune", "where", "what"),
    [
        (
            {"distillation.losses": ["kd", "contrastive"], "distillation.temperature": [4, 20]},
            "tune.distillation.temperature.1",
            "must be at most 10, got 20 with the losses contrastive",
        ),
        (
            {"distillation.losses": ["kd", "contrastive"], "distillation.temperature": {"low": 1, "high": 20}},
            "tune.distillation.temperature.high",
            "with the losses contrastive",
        ),
        (
            {"distillation.losses": ["kd", {"type": "dist", "task_weight": 1}], "distillation.task_weight": [0.1, 0.5]},
            "tune.distillation.task_weight",
            "is stated by the losses {type: dist, task_weight: 1} too",
        ),
        (
            {"distillation.losses": [{"type": "kd", "temperature": 2}, "ce"], "distillation.temperature": [1, 4]},
            "tune.distillation.temperature",
            "is stated by the losses {type: kd, temperature: 2} too",
        ),
        ({"distillation.losses": ["hint+kd", "kd+hint"]}, "tune.distillation.losses", "are the same losses"),
        ({"distillation.losses": ["kd", {"type": "kd"}]}, "tune.distillation.losses", "are the same losses"),
    ],
)
def test_what_goes_with_some_of_the_losses_only_is_told(tune: dict[str, object], where: str, what: str) -> None:
    problems = tunable_problems(study_config(tune=tune))
    assert [problem.where for problem in problems] == [where]
    assert what in problems[0].what


def test_one_number_written_in_two_ways_is_one_value() -> None:
    with pytest.raises(ValueError, match="states a value twice"):
        study_config(tune={"distillation.temperature": [1, 1.0]})
