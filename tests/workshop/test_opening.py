"""Opening a study: folders, device, data, split, and the teacher measured on real images."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from workshops import split_of, workshop_of

from kdnas.core.data import ImageData, Samples
from kdnas.errors import ConfigError, DataError, TeacherError, TrialError
from kdnas.record.run_folder import locked
from kdnas.teachers import Teacher
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluate
from kdnas.training.recipe import Training
from kdnas.workshop import opening, teacher_training
from kdnas.workshop.teacher_check import least_accuracy, report_teacher

CPU = torch.device("cpu")
FLOAT32 = Training(precision="float32")
CIFAR = {
    "type": "module",
    "factory": "teachers/cifar10/teacher.py:build_teacher",
    "weights": "teachers/cifar10/teacher.safetensors",
}
STATED = {"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}
STUDENT = {
    "type": "student",
    "family": "resnet",
    "choices": {
        "stem_width": 8,
        **{
            f"stage{i}.{key}": value
            for i in (1, 2)
            for key, value in (("depth", 1), ("width", 8 * i), ("skip", "identity"))
        },
        "stage1.bottleneck": "plain",
        "stage2.bottleneck": "plain",
    },
    "training": {"epochs": 6, "batch_size": 32},
}


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path / "d"))
    assert opening.cache_dir() == tmp_path / "c"
    assert opening.data_root(None) == tmp_path / "d"
    assert opening.data_root(tmp_path) == tmp_path
    monkeypatch.delenv("KDNAS_CACHE")
    monkeypatch.delenv("KDNAS_DATA")
    assert opening.cache_dir() == Path.home() / ".cache" / "kdnas"
    assert opening.data_root(None) == Path("data")
    with pytest.raises(DataError, match=r"--data-root: there is no folder .*absent"):
        opening.data_root(tmp_path / "absent")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert opening.resolve_device("auto") == opening.resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"device: cuda: torch .* finds no GPU") as caught:
        opening.resolve_device("cuda")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="there is no device 'tpu'"):
        opening.resolve_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert opening.resolve_device("auto").type == "cuda"
    assert opening.resolve_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match="there is no cuda:2: 2 GPUs"):
        opening.resolve_device("cuda:2")


def test_the_split_is_stratified_seeded_and_whole(digits: ImageData) -> None:
    train, validation = split_of(digits, 0.25, 3)
    assert sorted([*train, *validation]) == list(range(len(digits.train)))
    for label in range(10):
        whole = np.sum(digits.train.targets == label)
        assert abs(np.sum(digits.train.targets[validation] == label) - 0.25 * whole) <= 0.5
    again = split_of(digits, 0.25, 3)
    assert np.array_equal(again[1], validation)
    assert not np.array_equal(split_of(digits, 0.25, 4)[1], validation)


def test_a_share_of_the_training_split(digits: ImageData) -> None:
    opened = workshop_of(digits)
    train, validation = opened.train_indices, opened.validation_indices
    assert opened.share(1.0).indices is train
    tenth = opened.share(0.1).indices
    assert opened.share(0.1) is opened.share(0.1)
    assert set(tenth) <= set(train)
    assert not set(tenth) & set(validation)
    assert np.all(np.diff(tenth) > 0)
    counts = Counter(digits.train.targets[tenth])
    whole = Counter(digits.train.targets[train])
    assert all(abs(counts[label] - 0.1 * whole[label]) <= 0.5 for label in range(10))
    assert np.array_equal(workshop_of(digits).share(0.1).indices, tenth)
    assert not np.array_equal(workshop_of(digits, train=train, seed=1).share(0.1).indices, tenth)


def _open(config: dict, data: ImageData, train: np.ndarray, cache: Path, notify: Callable, **options) -> Teacher:
    return workshop_of(data, train=train, teacher=config, cache=cache, notify=notify, **options).teacher


def test_a_student_teacher_is_trained_once_and_measured(digits: ImageData, tmp_path: Path) -> None:
    train, validation = split_of(digits)
    printed: list[str] = []
    state = torch.get_rng_state()
    teacher = _open(STUDENT, digits, train, tmp_path, printed.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum("teacher epoch" in line for line in printed) == 6
    (kept,) = (tmp_path / "teachers").iterdir()
    assert kept.suffix == ".safetensors"

    images = torch.from_numpy(digits.train.inputs["pixels"][validation]).float()
    with torch.no_grad():
        hits = teacher.module(images).argmax(1).numpy() == digits.train.targets[validation]
    assert hits.mean() > 0.8  # it learnt digits it has not seen
    report = report_teacher(teacher, digits, validation, FLOAT32, device=CPU)
    assert report.score == pytest.approx(hits.mean(), abs=0.01)  # bfloat16 where that is native
    assert report.test_score is None
    assert report.values["params"] == sum(p.numel() for p in teacher.module.parameters())

    printed.clear()
    again = _open(STUDENT, digits, train, tmp_path, printed.append)
    assert printed == []
    assert again.fingerprint == teacher.fingerprint
    torch.testing.assert_close(again.module(images[:8]), teacher.module(images[:8]))


@pytest.mark.parametrize("changed", ["seed", "split", "training", "data"])
def test_a_kept_teacher_is_only_used_where_nothing_changed(digits: ImageData, tmp_path: Path, changed: str) -> None:
    train, _ = split_of(digits)
    brief = {**STUDENT, "training": {"epochs": 1, "data_fraction": 0.2}}
    printed: list[str] = []
    _open(brief, digits, train, tmp_path, printed.append)
    assert any(f"on {len(workshop_of(digits, train=train).share(0.2))} images" in line for line in printed)
    other, data, options = dict(brief), digits, {}
    if changed == "seed":
        options["seed"] = 1
    elif changed == "split":
        train = train[1:]
    elif changed == "training":
        other["training"] = {"epochs": 1, "data_fraction": 0.2, "learning_rate": 0.05}
    else:
        data = replace(digits, fingerprint="another")
    printed.clear()
    _open(other, data, train, tmp_path, printed.append, **options)
    assert any("training the teacher" in line for line in printed)
    assert len(list((tmp_path / "teachers").iterdir())) == 2


def test_an_interrupted_teacher_training_continues_exactly(digits: ImageData, tmp_path: Path) -> None:
    train, _ = split_of(digits)
    config = {**STUDENT, "training": {"epochs": 4, "data_fraction": 0.2}}
    whole = _open(config, digits, train, tmp_path / "whole", lambda line: None)

    def interrupt(line: str) -> None:
        if "epoch 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _open(config, digits, train, tmp_path / "cut", interrupt)
    assert not list((tmp_path / "cut" / "teachers").glob("*.safetensors"))
    printed: list[str] = []
    resumed = _open(config, digits, train, tmp_path / "cut", printed.append)
    assert sum("teacher epoch" in line for line in printed) == 2
    assert resumed.fingerprint == whole.fingerprint
    assert [path.suffix for path in (tmp_path / "cut" / "teachers").iterdir()] == [".safetensors"]


def test_two_runs_that_share_a_cold_cache_train_their_teacher_once(digits: ImageData, tmp_path: Path) -> None:
    train, _ = split_of(digits)
    _open(STUDENT, digits, train, tmp_path / "a", lambda line: None)
    (made,) = (tmp_path / "a" / "teachers").glob("*.safetensors")
    shared = tmp_path / "b" / "teachers" / made.name
    shared.parent.mkdir(parents=True)
    printed: list[str] = []
    with shared.with_suffix(".lock").open("a") as first, ThreadPoolExecutor(1) as pool:
        assert locked(first)
        second = pool.submit(_open, STUDENT, digits, train, tmp_path / "b", printed.append)
        while not printed and not second.done():
            time.sleep(0.01)
        assert printed == [f"waiting for another process that trains this teacher and will keep it in {shared}"]
        shutil.copy(made, shared)
        first.close()  # as the end of its process does
        second.result(60)
    assert not [line for line in printed if line.startswith("training the teacher")]


@pytest.mark.parametrize("suffix", [".safetensors", ".checkpoint"])
def test_a_damaged_cache_is_made_anew(digits: ImageData, tmp_path: Path, suffix: str) -> None:
    train, _ = split_of(digits)
    config = {**STUDENT, "training": {"epochs": 1, "data_fraction": 0.2}}
    first = _open(config, digits, train, tmp_path, lambda line: None)
    (kept,) = (tmp_path / "teachers").iterdir()
    if suffix == ".safetensors":
        kept.write_bytes(kept.read_bytes()[:100])
    else:
        kept.rename(kept.with_suffix(suffix))  # weights, but no state of a training
    printed: list[str] = []
    healed = _open(config, digits, train, tmp_path, printed.append)
    assert any("is damaged and is trained again" in line or "starts anew" in line for line in printed)
    assert healed.fingerprint == first.fingerprint
    assert list((tmp_path / "teachers").iterdir()) == [kept]


def test_a_teacher_training_that_fails_is_bad_input(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args, **kwargs):
        raise TrialError("the loss is nan")

    monkeypatch.setattr(teacher_training, "distil", fail)
    with pytest.raises(TeacherError, match=r"teacher\.training: the training of the teacher failed: the loss is nan"):
        _open(STUDENT, digits, np.arange(200), tmp_path, lambda line: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epoch": 3, "batch_size": 0}}, r"teacher\.training\.epoch: unknown key.*\n?.*batch_size"),
        ({"training": {"resolution_fraction": 0.5}}, "a teacher takes samples whole"),
        ({"choices": {"stem_width": 8}}, "stage1"),
        ({"family": "rezzo"}, "no student family is called 'rezzo'"),
        ({"type": "studnet"}, "did you mean 'student'"),
    ],
)
def test_a_student_teacher_that_cannot_be_built(digits: ImageData, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _open({**STUDENT, **change}, digits, np.arange(100), tmp_path, print)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cifar(data_root: Path) -> ImageData:
    """Return 12 test images of each CIFAR-10 class, as both splits."""
    images, labels, names = [], [], []
    counts: Counter[str] = Counter()
    with tarfile.open(data_root / "cifar10.tar.xz", "r|xz") as archive:
        for member in archive:
            split_name, _, rest = member.name.partition("/")
            label = rest.partition("/")[0]
            if not member.isfile() or split_name != "test" or counts[label] >= 12:
                continue
            if label not in names:
                names.append(label)
            counts[label] += 1
            picture = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
            images.append(np.asarray(picture).transpose(2, 0, 1))
            labels.append(names.index(label))
    arrays = Samples({"pixels": np.stack(images)}, np.array(labels, dtype=np.int64))
    return ImageData("cifar10", tuple(names), arrays, arrays, "c", (125.3, 122.9, 113.9), (62.5, 61.9, 66.5))


def test_the_real_cifar_teacher_is_reported(cifar: ImageData, data_root: Path, tmp_path: Path) -> None:
    everything = np.arange(len(cifar.train))
    teacher = _open({**CIFAR, **STATED}, cifar, everything, tmp_path, print, data_root=data_root)
    report = report_teacher(teacher, cifar, everything, FLOAT32, device=CPU)
    # 0.8992 on all 10,000 test images; 120 of them stray from that by three standard errors of 0.027 at most.
    assert report.score == pytest.approx(0.8992, abs=0.083)
    assert report.values == {"macs": 162_366_720, "params": 1_084_586}
    assert report.test_score is None
    test = Batches(cifar, np.arange(len(cifar.test)), device=CPU, split="test")
    assert evaluate(teacher.module, test, Training(precision="bfloat16")) == report.score
    assert len(teacher.stages) == 3
    assert teacher.classifier.endswith("fc")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0, 0, 0), (1, 1, 1), r"is chance .*own statistics .* in place of the stated one it reaches 0\.[89]"),
        ((0, 0, 0), (255, 255, 255), r"accuracy on the 120 validation images is 0\.\d+, but with .* set mean and std"),
    ],
)
def test_another_normalisation_is_refused_with_the_right_one(
    cifar: ImageData, data_root: Path, tmp_path: Path, mean: tuple, std: tuple, message: str
) -> None:
    everything = np.arange(len(cifar.train))
    config = {**CIFAR, "mean": mean, "std": std}
    teacher = _open(config, cifar, everything, tmp_path, print, data_root=data_root)
    with pytest.raises(TeacherError, match=message):
        report_teacher(teacher, cifar, everything, FLOAT32, device=CPU)


def _nearest_mean(data: ImageData, reverse: bool = False) -> nn.Linear:
    """Return the least-squares classifier of normalised pixels, its channels perhaps in the order BGR."""
    pixels = data.train.inputs["pixels"].astype(np.float64)
    mean, std = (np.array(part)[:, None, None] for part in (data.channel_mean, data.channel_std))
    pixels = (pixels[:, ::-1] if reverse else pixels) - mean
    flat = np.c_[(pixels / std).reshape(len(pixels), -1), np.ones(len(pixels))]
    solved = np.linalg.lstsq(flat, np.eye(data.task.outputs)[data.train.targets], rcond=None)[0].T
    layer = nn.Linear(flat.shape[1] - 1, data.task.outputs)
    layer.weight.data = torch.from_numpy(solved[:, :-1]).float()
    layer.bias.data = torch.from_numpy(solved[:, -1]).float()
    return layer


@pytest.fixture
def coloured() -> ImageData:
    """Return 300 images whose class is their brightest channel."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    images = rng.integers(0, 120, (300, 3, 4, 4))
    images[np.arange(300), labels] += 60
    arrays = Samples({"pixels": images.astype(np.uint8)}, labels)
    return ImageData("colours", ("r", "g", "b"), arrays, arrays, "d", (80.0, 80.0, 80.0), (45.0, 45.0, 45.0))


def _saved(data: ImageData, layer: nn.Linear, folder: Path) -> dict:
    """Write `layer` and the function that builds it; return the teacher's configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(
        "from torch import nn\ndef build(i, o): return nn.Sequential(nn.Flatten(), nn.Linear(i, o))\n"
    )
    torch.save({f"1.{name}": value for name, value in layer.state_dict().items()}, folder / "w.pth")
    arguments = {"i": layer.in_features, "o": layer.out_features}
    statistics = {"mean": data.channel_mean, "std": data.channel_std}
    return {"type": "module", "factory": "net.py:build", "weights": "w.pth", "arguments": arguments, **statistics}


def test_reversed_channels_are_recognised(coloured: ImageData, tmp_path: Path) -> None:
    everything = np.arange(300)
    for reverse in (False, True):
        config = _saved(coloured, _nearest_mean(coloured, reverse), tmp_path)
        teacher = _open(config, coloured, everything, tmp_path, print, data_root=tmp_path)
        if not reverse:
            report = report_teacher(teacher, coloured, everything, FLOAT32, device=CPU)
            assert report.score > 0.95
            assert report.values["macs"] == 3 * 4 * 4 * 3
            continue
        with pytest.raises(TeacherError, match="in the order BGR it reaches"):
            report_teacher(teacher, coloured, everything, FLOAT32, device=CPU)


def test_an_untrained_teacher_is_refused_as_chance(coloured: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 3)
    layer.weight.data.zero_()
    teacher = _open(_saved(coloured, layer, tmp_path), coloured, np.arange(300), tmp_path, print, data_root=tmp_path)
    with pytest.raises(TeacherError) as caught:
        report_teacher(teacher, coloured, np.arange(300), FLOAT32, device=CPU)
    message = str(caught.value)
    assert "0.3333, which is chance" in message
    assert "check its weights" in message


@pytest.mark.parametrize(
    ("counts", "least"),
    [
        ((500, 500), 0.5 + 3 * (0.25 / 1000) ** 0.5),  # three standard errors
        ((100_000,) * 10, 0.1 + 0.05 * 0.9),  # a twentieth of what is left
        ((9, 1), 0.95),  # never more than half of what is left
    ],
)
def test_the_least_accuracy(counts: tuple[int, ...], least: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    assert least_accuracy(labels) == pytest.approx((max(counts) / sum(counts), least))
