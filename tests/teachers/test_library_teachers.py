"""Teachers from timm, torchvision and transformers, built here without anything downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from kdnas.errors import TeacherError
from kdnas.teachers import TEACHERS

IMAGENET = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def _normalised(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return (images - mean[:, None, None]) / std[:, None, None]


def _save(network: torch.nn.Module, path: Path) -> Path:
    save_file({name: value.clone() for name, value in network.state_dict().items()}, path)
    return path


class TestTimm:
    def test_weights_from_a_file(self, tmp_path, open_context, raw_images) -> None:
        timm = pytest.importorskip("timm")
        torch.manual_seed(1)
        network = timm.create_model("test_resnet", pretrained=False, num_classes=10).eval()
        _save(network, tmp_path / "w.safetensors")
        context = open_context()
        teacher = TEACHERS.build("timm", context, model="test_resnet", weights="w.safetensors", input_size=32)
        images = raw_images(context)
        declared = network.pretrained_cfg
        mean, std = (255 * torch.tensor(declared[key]) for key in ("mean", "std"))
        with torch.no_grad():
            expected = network(_normalised(images, mean, std))
        torch.testing.assert_close(teacher.module(images), expected, rtol=1e-4, atol=1e-5)
        assert teacher.stages
        assert teacher.classifier is not None
        side = declared["input_size"][1]
        resized = TEACHERS.build("timm", context, model="test_resnet", weights="w.safetensors")
        assert any(f"resized to {side}x{side}" in note for note in resized.notes)

    def test_the_stages_of_a_transformer_are_its_layers(self, tmp_path, open_context) -> None:
        timm = pytest.importorskip("timm")
        network = timm.create_model("test_vit", pretrained=False, num_classes=10, img_size=32)
        _save(network, tmp_path / "w.safetensors")
        options = {"model": "test_vit", "weights": "w.safetensors", "arguments": {"img_size": 32}}
        teacher = TEACHERS.build("timm", open_context(), **options)
        assert [stage.rpartition(".")[2] for stage in teacher.stages] == list("012345")
        assert not any("resized" in note for note in teacher.notes)

    def test_a_head_for_other_classes_is_refused_naming_both(self, tmp_path, open_context) -> None:
        timm = pytest.importorskip("timm")
        _save(timm.create_model("test_resnet", pretrained=False, num_classes=7), tmp_path / "w.safetensors")
        with pytest.raises(TeacherError, match="has 7 classes, the data random has 10"):
            TEACHERS.build("timm", open_context(), model="test_resnet", weights="w.safetensors")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "test_resnet"}, "where the weights come from"),
            ({"model": "test_resnet", "weights": "w.pth", "pretrained": True}, "where the weights come from"),
            ({"model": "test_resnet", "weights": "absent.pth"}, "there is no file"),
            ({"model": "no_such_model", "weights": "w.pth"}, "cannot make 'no_such_model'"),
        ],
    )
    def test_bad_options(self, tmp_path, open_context, options: dict, message: str) -> None:
        pytest.importorskip("timm")
        torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
        with pytest.raises(TeacherError, match=message):
            TEACHERS.build("timm", open_context(), **options)

    def test_hub_weights_that_cannot_be_fetched(self, open_context, monkeypatch) -> None:
        timm = pytest.importorskip("timm")
        forced = []

        def offline(*args, **kwargs):
            forced.append(os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"))
            raise OSError("the hub cannot be reached")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(TeacherError, match="the hub cannot be reached"):
            TEACHERS.build("timm", open_context(), model="test_resnet", pretrained=True)
        assert forced == ["1"]
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class TestTorchvision:
    def test_weights_from_a_file(self, tmp_path, open_context, raw_images) -> None:
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(1)
        network = torchvision.models.squeezenet1_1(weights=None, num_classes=10).eval()
        torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
        context = open_context(size=48)
        teacher = TEACHERS.build("torchvision", context, model="squeezenet1_1", weights="w.pth")
        images = raw_images(context)
        with torch.no_grad():
            expected = network(_normalised(images, *IMAGENET))
        torch.testing.assert_close(teacher.module(images), expected, rtol=1e-4, atol=1e-5)
        assert any("ImageNet" in note for note in teacher.notes)

    def test_named_weights_bring_their_normalisation_and_size(self, open_context, raw_images, monkeypatch) -> None:
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(1)
        network = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=1000).eval()
        asked = {}

        def fetched(url, **options):
            asked.update(options, url=url)
            return network.state_dict()

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
        context = open_context(classes=1000, size=40)
        teacher = TEACHERS.build("torchvision", context, model="shufflenet_v2_x0_5", weights="IMAGENET1K_V1")
        assert asked["weights_only"] is True
        assert asked["url"] == torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.url
        images = raw_images(context)[:2]
        wide = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            expected = network(_normalised(wide, *IMAGENET))
        torch.testing.assert_close(teacher.module(images), expected, rtol=1e-3, atol=1e-4)
        assert any("resized to 224x224" in note for note in teacher.notes)
        with pytest.raises(TeacherError, match="has 1000 classes, the data random has 10"):
            TEACHERS.build("torchvision", open_context(), model="shufflenet_v2_x0_5", weights="DEFAULT")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"model": "resnet19", "weights": "DEFAULT"}, "no classifier 'resnet19'"),
            ({"model": "resnet18", "weights": "IMAGENET9"}, r"no weights 'IMAGENET9' \(allowed: IMAGENET1K_V1"),
            ({"model": "resnet18", "weights": "absent.pth"}, "there is no file"),
            ({"model": "resnet18", "weights": "w.pth", "arguments": {"depth": 3}}, "cannot make 'resnet18'"),
            ({"model": "resnet18", "weights": "w.pth"}, "has 7 classes, the data random has 10"),
        ],
    )
    def test_bad_options(self, tmp_path, open_context, options: dict, message: str) -> None:
        pytest.importorskip("torchvision")
        torch.save({"fc.weight": torch.zeros(7, 512)}, tmp_path / "w.pth")
        with pytest.raises(TeacherError, match=message):
            TEACHERS.build("torchvision", open_context(), **options)


@pytest.fixture(scope="module")
def saved_resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A tiny transformers ResNet saved with its preprocessor; its classes are the random data's, in another order."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf") / "net"
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={index: f"class{9 - index}" for index in range(10)},
        label2id={f"class{9 - index}": index for index in range(10)},
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ConvNextImageProcessor",
                "do_resize": True,
                "size": {"shortest_edge": 40},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2, 0.25, 0.3],
            }
        )
    )
    return folder, network


class TestHuggingFace:
    def test_a_local_folder(self, saved_resnet, open_context, raw_images) -> None:
        folder, network = saved_resnet
        context = open_context(data_root=folder.parent)
        teacher = TEACHERS.build("huggingface", context, model="net")
        images = raw_images(context)
        wide = F.interpolate(images, (40, 40), mode="bilinear", antialias=True) / 255
        with torch.no_grad():
            pixels = _normalised(wide, torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3]))
            expected = network(pixel_values=pixels).logits.flip(1)
        torch.testing.assert_close(teacher.module(images), expected, rtol=1e-4, atol=1e-5)
        assert any("by their names" in note for note in teacher.notes)
        assert any("resized to 40x40" in note for note in teacher.notes)

    def test_of_more_classes_the_data_s_are_found_by_name(self, saved_resnet, open_context, raw_images) -> None:
        contexts = [open_context(data_root=saved_resnet[0].parent, classes=classes) for classes in (10, 4)]
        whole, part = (TEACHERS.build("huggingface", context, model="net") for context in contexts)
        images = raw_images(contexts[1])
        torch.testing.assert_close(part.module(images), whole.module(images)[:, :4])
        assert any("of its 10 classes the data's 4 are used" in note for note in part.notes)

    def test_stated_settings_win(self, saved_resnet, open_context) -> None:
        context = open_context(data_root=saved_resnet[0].parent)
        options = {"mean": (1, 2, 3), "std": (4, 5, 6), "input_size": 32}
        teacher = TEACHERS.build("huggingface", context, model="net", **options)
        assert teacher.module.normalised.mean.flatten().tolist() == [1, 2, 3]
        assert not any("resized" in note for note in teacher.notes)

    def test_refusals(self, saved_resnet, open_context, tmp_path) -> None:
        folder, network = saved_resnet
        with pytest.raises(TeacherError, match=r"2 of 12 are not among them, or not once: class10, class11"):
            TEACHERS.build("huggingface", open_context(data_root=folder.parent, classes=12), model="net")
        bare = tmp_path / "bare"
        network.save_pretrained(bare)
        with pytest.raises(TeacherError, match=r"no readable preprocessor_config\.json.*mean, std and input_size"):
            TEACHERS.build("huggingface", open_context(), model="bare")
        state = {name: value.clone() for name, value in network.state_dict().items()}
        del state["classifier.1.weight"]
        save_file(state, bare / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TeacherError, match=r"1 weights are missing: classifier\.1\.weight"):
            TEACHERS.build("huggingface", open_context(), model="bare")
        (bare / "model.safetensors").unlink()
        torch.save(network.state_dict(), bare / "pytorch_model.bin")
        with pytest.raises(TeacherError, match="cannot be loaded"):
            TEACHERS.build("huggingface", open_context(), model="bare")

    def test_code_of_the_models_repository_does_not_run(self, saved_resnet, open_context, tmp_path) -> None:
        pytest.importorskip("transformers")
        folder = tmp_path / "armed"
        folder.mkdir()
        mark = tmp_path / "ran"
        (folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w')\nclass Net: pass\n")
        classes = {"AutoConfig": "modeling.Net", "AutoModelForImageClassification": "modeling.Net"}
        (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
        with pytest.raises(TeacherError, match="cannot be loaded"):
            TEACHERS.build("huggingface", open_context(), model="armed")
        assert not mark.exists()
