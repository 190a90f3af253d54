"""A training that begins from the weights of another: exact, also when interrupted; refused where it is not that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdnas.datasets import DATASETS
from kdnas.errors import RunFolderError
from kdnas.nn.normalise import Normalised
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.checkpoint import epochs_done
from kdnas.training.loop import distil
from kdnas.training.recipe import Distillation, LossTerm, Recipe, Training

CPU = torch.device("cpu")


class Net(nn.Module):
    """One stage and a classifier."""

    def __init__(self, width: int):
        super().__init__()
        torch.manual_seed(width)
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())])
        self.classifier = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.stages[0](images).mean(dim=(2, 3)))


def recipe(epochs: int) -> Recipe:
    hint = LossTerm(type="hint", weight=0.5)  # it has adapters, which are carried over too
    training = Training(epochs=epochs, batch_size=64, precision="float32")
    return Recipe(training=training, distillation=Distillation(losses=(hint,)))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Any, ...], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("digits")
    data = DATASETS.build("digits", folder, folder)
    train = Batches(data, np.arange(256), device=CPU)
    module = Normalised(Net(12), data.channel_mean, data.channel_std).eval()
    teacher = Teacher("wide", module, ("network.stages.0",), "network.classifier", fingerprint="wide")
    return (teacher, train, None), {"data": data, "seed": 1, "device": CPU}


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_begins_where_the_other_ended_and_continues_exactly_when_interrupted(setting, tmp_path: Path) -> None:
    objects, options = setting
    first, second, again = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "again"))
    assert epochs_done(first) == 0
    distil(Net(8), *objects, recipe(2), checkpoint=first, **options)
    assert epochs_done(first) == 2
    whole = distil(Net(8), *objects, recipe(3), checkpoint=second, begin_from=first, **options)
    assert [record.epoch for record in whole.history] == [1, 2, 3]
    expected = state(whole.network)
    cold = distil(Net(8), *objects, recipe(3), **options)
    assert not equal(state(cold.network), expected)

    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        distil(Net(8), *objects, recipe(3), checkpoint=again, begin_from=first, on_epoch=stop, **options)
    assert epochs_done(again) == 2
    continued = distil(Net(8), *objects, recipe(3), checkpoint=again, begin_from=first, **options)
    assert equal(state(continued.network), expected)


def test_a_checkpoint_of_another_origin_is_refused(setting, tmp_path: Path) -> None:
    objects, options = setting
    short, long, later = (tmp_path / f"{name}.safetensors" for name in ("short", "long", "later"))
    distil(Net(8), *objects, recipe(1), checkpoint=short, **options)
    distil(Net(8), *objects, recipe(2), checkpoint=long, **options)
    distil(Net(8), *objects, recipe(1), checkpoint=later, begin_from=short, **options)
    with pytest.raises(RunFolderError, match="belongs to another training"):
        distil(Net(8), *objects, recipe(1), checkpoint=later, begin_from=long, **options)
    with pytest.raises(RunFolderError, match="belongs to another training"):
        distil(Net(8), *objects, recipe(1), checkpoint=later, **options)
    with pytest.raises(RunFolderError, match="is damaged"):
        distil(Net(6), *objects, recipe(1), begin_from=short, **options)
    later.write_bytes(b"\x80\x04torn")
    with pytest.raises(RunFolderError, match="is damaged"):
        epochs_done(later)
