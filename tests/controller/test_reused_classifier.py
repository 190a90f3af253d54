"""SimKD: students that end in their teacher's classifier, from the search to the file that runs without kdnas."""

from __future__ import annotations

import re
import runpy

import pytest
import tiny
import torch

from kdnas.cli.main import main
from kdnas.core.space import Choice, SearchSpace
from kdnas.core.task import image_classification
from kdnas.errors import ConfigError
from kdnas.nn.taps import output_shapes
from kdnas.nn.tracing import fvcore_macs
from kdnas.nn.weights import load_weights
from kdnas.record.storage import load_run
from kdnas.students import family_for
from kdnas.study.loading import load_study
from kdnas.teachers import Teacher
from kdnas.workshop.opening import Sources, Workshop

PROJECTED = 16
"""What the classifier of the tiny study's teacher takes."""
SETTINGS = ("budget.trials=2", "training.epochs=1", "final.epochs=1", "final.max_students=1", "final.seeds=1")


def reusing(parent, projected=PROJECTED, losses="[{type: sim_kd}]"):
    folder = tiny.write(parent)
    with (folder / "study.yaml").open("a") as study, (folder / "space.yaml").open("a") as space:
        study.write(f"distillation: {{task_weight: 0, losses: {losses}}}\n")
        space.write(f"fixed: {{projected: {projected}}}\n")
    return folder


def command(study, folder, *settings):
    return ["search", str(study), "--out", str(folder), *(part for text in settings for part in ("--set", text))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = reusing(tmp_path_factory.mktemp("reused"))
    formats = "export.formats=[safetensors, student_py, onnx]"
    assert main(command(study, study.parent / "run", *SETTINGS, formats)) == 0
    return load_run(study.parent / "run")


@pytest.fixture(scope="module")
def workshop(run, kdnas_cache):
    loaded = load_study(run.folder.parent / "tiny")
    sources = Sources.of_study(loaded.config, loaded.space)
    return Workshop(sources, data_root=run.folder, cache=kdnas_cache, device=torch.device("cpu")).opened()


def test_what_it_adds_is_counted_and_its_classifier_is_the_teachers(run, workshop):
    (finalist,) = (trial for trial in run.trials if trial.repeats)
    arch = finalist.arch
    network = workshop.begin(arch, "random", 0)
    price = workshop.family.price(arch)
    assert price.macs == fvcore_macs(network.eval(), torch.zeros(1, 1, 8, 8))
    assert price.params == sum(parameter.numel() for parameter in network.parameters())
    bare = workshop.family.canonical({**arch.choices, "projected": 0})
    assert price.params > workshop.family.price(bare).params
    reused = workshop.teacher_shapes("teacher").classifier
    load_weights(network, run.folder / "export/student.safetensors")
    assert torch.equal(network.classifier.weight, reused.weight)
    assert torch.equal(network.classifier.bias, reused.bias)
    assert not network.classifier.weight.requires_grad
    assert not torch.equal(network.stages[-1][0][0].weight, workshop.begin(arch, "random", 0).stages[-1][0][0].weight)


def test_the_file_without_kdnas_gives_what_was_scored(run, workshop):
    (finalist,) = (trial for trial in run.trials if trial.repeats)
    network = workshop.begin(finalist.arch, "random", 0)
    load_weights(network, run.folder / "export/student.safetensors")
    alone = runpy.run_path(str(run.folder / "export/student.py"))["build_student"]()
    load_weights(alone, run.folder / "export/student.safetensors")
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(alone.eval()(images), network.eval()(images))
    assert workshop.test_score(workshop.entered(network)) == pytest.approx(finalist.repeats[0].test_score)


@pytest.mark.parametrize(
    ("projected", "settings", "problem"),
    [
        (8, (), r"no teacher has a classifier of 8 channels .*: teacher takes 16 channels"),
        (0, (), r"sim_kd: the student does not end in its teacher's classifier \(allowed: .*`projected: 16`"),
        (16, ("start=supernet",), "students that end in their teacher's classifier begin at random"),
        (16, ("start=inherited",), "students that end in their teacher's classifier begin at random"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_training(tmp_path, capsys, projected, settings, problem):
    study = reusing(tmp_path, projected)
    assert main(command(study, tmp_path / "run", *SETTINGS, *settings)) == 2
    told = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert re.search(problem, told), told
    assert not list((tmp_path / "run").glob("checkpoints/*"))


class Flat(torch.nn.Module):
    """A network whose classifier reads the places of its maps one by one."""

    def __init__(self):
        super().__init__()
        self.maps = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.classifier = torch.nn.Linear(4 * 64, 10)

    def forward(self, images):
        return self.classifier(self.maps(images).flatten(1))


def test_a_teacher_that_does_not_pool_its_last_maps_is_refused():
    task, flat = image_classification((1, 8, 8), 10), Flat()
    assert not output_shapes(flat, ("maps",), "classifier", torch.rand(2, 1, 8, 8)).pooled
    teacher = Teacher("flat", flat, ("maps",), "classifier", "0")
    family = family_for("mobilenet", task, {"flat": teacher})
    space = SearchSpace("one", "mobilenet", (Choice("stem_width", (4,)),), fixed={"projected": 256})
    with pytest.raises(ConfigError, match="flat has no linear classifier of its pooled last maps"):
        family.space(space)
