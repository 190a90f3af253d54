"""What a teacher's network may answer in, and which of its classes is which of the data's."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdnas.errors import TeacherError
from kdnas.teachers._adapting import Expected, fit_teacher
from kdnas.teachers._class_names import Naming, class_order, names_near, naming_of
from kdnas.teachers._fitted import logits_of, probability_total

EXPECTED = Expected((127.5,) * 3, (64.0,) * 3)


class Net(nn.Module):
    """A small network whose answer `say` makes of logits and features."""

    def __init__(self, say=None, view: bool = False, channels: int = 3):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(channels, 8, 3, stride=4, padding=1)
        self.fc = nn.Linear(8 * 64, 10)
        nn.init.normal_(self.fc.weight, std=0.3)
        self.say = say
        self.view = view

    def forward(self, images: Tensor):
        maps = self.features(images).relu()
        flat = maps.view(len(maps), -1) if self.view else maps.flatten(1)
        logits = self.fc(flat)
        return logits if self.say is None else self.say(logits, maps)


def _fit(network: nn.Module, context, **options):
    return fit_teacher("net", network, context, EXPECTED, facts={}, **options)


@pytest.mark.parametrize(
    "say",
    [
        lambda logits, maps: (logits, maps),
        lambda logits, maps: [logits],
        lambda logits, maps: (maps.mean((2, 3)), logits),
        lambda logits, maps: {"logits": logits, "features": maps},
        lambda logits, maps: OrderedDict(out=logits, aux=logits),
        lambda logits, maps: logits[:, :, None, None],
        lambda logits, maps: logits.double(),
    ],
)
def test_logits_are_found_in_what_a_network_gives(open_context, raw_images, say) -> None:
    context = open_context()
    teacher, plain = _fit(Net(say), context), _fit(Net(), context)
    logits = teacher.module(raw_images(context))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain.module(raw_images(context)))


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (
            lambda logits, maps: logits.argmax(1),
            "one number an image: the index of the class, nothing of the others",
        ),
        (lambda logits, maps: (logits, logits), "which are its logits is not known"),
        (lambda logits, maps: {"a": logits, "b": maps}, "a dictionary of a, b"),
        (lambda logits, maps: logits.numpy(), "an object of type ndarray"),
        (lambda logits, maps: logits / 0, "NaN or infinite"),
    ],
)
def test_what_holds_no_logits_is_refused(open_context, say, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        _fit(Net(say), open_context())


@pytest.mark.parametrize("share", [1, 100])
def test_the_log_of_probabilities_is_taken(open_context, raw_images, share: int) -> None:
    context = open_context()
    logits = _fit(Net(), context).module(raw_images(context))
    teacher = _fit(Net(lambda z, maps: share * z.softmax(1)), context)
    assert teacher.outputs == "probabilities"
    assert any(note.startswith("outputs: probabilities") for note in teacher.notes)
    torch.testing.assert_close(teacher.module(raw_images(context)), logits.log_softmax(1), rtol=1e-3, atol=1e-3)
    assert teacher.fingerprint != _fit(Net(), context).fingerprint


@pytest.mark.parametrize("say", [Tensor.sigmoid, Tensor.relu, lambda z: z.log_softmax(1), lambda z: z.softmax(1) - 0.1])
def test_what_are_no_probabilities_stays_as_it_is(open_context, raw_images, say) -> None:
    context = open_context()
    teacher = _fit(Net(lambda z, maps: say(z)), context)
    assert teacher.outputs == "logits"
    torch.testing.assert_close(
        teacher.module(raw_images(context)), say(_fit(Net(), context).module(raw_images(context)))
    )


def test_half_precision_probabilities_keep_their_order() -> None:
    logits = torch.tensor([[9.0, 0.0, -9.0, -30.0], [1.0, 2.0, 3.0, 4.0]])
    half = logits.softmax(1).half()
    assert probability_total(half) == 1.0
    assert probability_total(logits) is None


@pytest.mark.parametrize("channels", [3, 1])
def test_a_network_that_takes_no_channels_last_images(open_context, raw_images, channels: int) -> None:
    context = open_context(channels=channels)
    expected = Expected((127.5,) * channels, (64.0,) * channels)
    teacher, plain = (
        fit_teacher("net", Net(view=view, channels=channels), context, expected, facts={}) for view in (True, False)
    )
    assert any("default memory format" in note for note in teacher.notes)
    assert not any("default memory format" in note for note in plain.notes)
    images = raw_images(context).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(teacher.module(images), plain.module(images))
    teacher.module.to(memory_format=torch.channels_last)  # as what measures its latency does
    torch.testing.assert_close(teacher.module(images), plain.module(images))


def test_a_network_that_reads_strides_wrongly_gets_the_format_that_it_means(open_context, raw_images) -> None:
    class Blind(Net):
        def forward(self, images):
            return super().forward(torch.as_strided(images, images.shape, torch.zeros(images.shape).stride()))

    context = open_context()
    images = raw_images(context).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(_fit(Blind(), context).module(images), _fit(Net(), context).module(images))


def test_answers_tell_mended_code_that_no_file_hash_sees(open_context) -> None:
    context = open_context()
    before, same, mended = _fit(Net(), context), _fit(Net(), context), _fit(Net(lambda z, maps: 1.02 * z), context)
    assert before.answers == same.answers != mended.answers
    assert len(before.answers) == 32


# -- class names -----------------------------------------------------------------------------------------------------


def _data(open_context, *names: str):
    return replace(open_context(classes=max(len(names), 2)).data, class_names=names)


@pytest.mark.parametrize(
    ("own", "data", "order"),
    [
        (["cat", "dog", "fish"], ["cat", "dog", "fish"], None),
        (["dog", "fish", "cat"], ["cat", "dog", "fish"], (2, 0, 1)),
        (["Night_Owl", "grey-wolf", "Red Fox"], ["grey wolf", "night owl", "red_fox"], (1, 0, 2)),
        (["0", "1", "2", "10"], ["0", "1", "10", "2"], (0, 1, 3, 2)),
        (["00", "01", "02"], ["2", "1", "0"], (2, 1, 0)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"], ["goldfish", "tench"], (1, 0)),
        (["a", "A", "b"], ["A", "a", "b"], (1, 0, 2)),  # the exact spelling decides
        (["automobile", "bird", "cat"], ["bird", "car", "cat"], (1, 0, 2)),  # what is left over is each other's
    ],
)
def test_classes_are_matched_by_name(open_context, own, data, order) -> None:
    found, notes = class_order(naming_of(own), _data(open_context, *data), len(own))
    assert found == order
    assert bool(notes) == (order is not None)


@pytest.mark.parametrize(
    ("own", "data", "message"),
    [
        (
            ["cat", "dog", "fish", "owl"],
            ["cat", "dog", "wolf", "fox"],
            "2 of 4 are not among them, or not once: wolf, fox",
        ),
        (["crane", "crane", "dog"], ["crane", "dog"], "or not once: crane"),
        (["cat", "dog"], ["cat", "dog", "owl"], "1 of 3 are not among them"),
        (["cat", "dog", "owl"], ["0", "1", "2"], "data.class_names, in the order of the labels"),
    ],
)
def test_stated_names_that_do_not_fit_are_refused(open_context, own, data, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        class_order(naming_of(own), _data(open_context, *data), len(own))


def test_names_for_another_number_of_classes_are_refused(open_context) -> None:
    with pytest.raises(TeacherError, match="2 names for a network of 3 classes"):
        class_order(naming_of(["a", "b"]), _data(open_context, "a", "b", "c"), 3)


def test_names_that_say_nothing_leave_the_order(open_context) -> None:
    data = _data(open_context, "cat", "dog")
    assert class_order(Naming.of(["LABEL_0", "LABEL_1"], "config"), data, 2) == (None, ())
    order, (note,) = class_order(Naming.of(["Katze", "Hund"], "config"), data, 2)
    assert order is None
    assert "Katze, Hund" in note
    assert "the data's order is assumed" in note
    with pytest.raises(TeacherError, match="has 3 classes, the data random has 2"):
        class_order(Naming.of(["LABEL_0", "LABEL_1", "LABEL_2"], "config"), data, 3)


def test_names_are_read_from_the_weights_file_or_beside_it(tmp_path) -> None:
    tensors, names = {"w": torch.zeros(1)}, ["b", "a", "c"]
    save_file(tensors, tmp_path / "m.safetensors", metadata={"classes": json.dumps(names)})
    torch.save({"state_dict": tensors, "class_to_idx": {"a": 1, "b": 0, "c": 2}}, tmp_path / "m.pth")
    torch.save({"model": tensors, "meta": {"CLASSES": tuple(names)}}, tmp_path / "n.pth")
    torch.save(tensors, tmp_path / "bare.pth")
    for file in ("m.safetensors", "m.pth", "n.pth"):
        assert names_near(tmp_path / file)[0] == (tuple(names), file)
    assert [found for found, _ in names_near(tmp_path / "bare.pth")] == [None, None]
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y"}}))
    assert names_near(tmp_path / "bare.pth")[1] == (("x", "y"), "config.json")
    assert naming_of(None, *names_near(tmp_path / "bare.pth"), count=3) is None


def test_a_teacher_s_classes_follow_their_stated_names(open_context, raw_images) -> None:
    context = open_context()
    shuffled = [f"Class {index}" for index in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    context = replace(context, data=replace(context.data, class_names=tuple(f"class_{index}" for index in range(10))))
    teacher = _fit(Net(), context, naming=naming_of(shuffled))
    plain = _fit(Net(), context).module(raw_images(context))
    torch.testing.assert_close(teacher.module(raw_images(context))[:, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]], plain)
    assert teacher.classifier is not None
    assert teacher.fingerprint != _fit(Net(), context).fingerprint


def test_the_first_of_two_equal_keys_counts() -> None:
    assert logits_of({"out": torch.ones(2, 3), "scores": torch.zeros(2, 3)}).sum() == 6
