"""Every target of the registry keeps its family's contract; and what single targets do."""

import time

import pytest
import torch
from torch import nn

from kdnas.errors import ConfigError
from kdnas.targets import TARGETS, noise
from kdnas.testing import TargetConformance, suites
from kdnas.testing.costs import small_student as student
from kdnas.testing.targets import SHAPE

HERE = [name for name in TARGETS.names() if name != "cuda"]

globals().update(suites(TargetConformance, "cuda"))


@pytest.mark.gpu
class TestCuda(TargetConformance):
    member = "cuda"
    needs_gpu = True


def test_cuda_says_that_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="target cuda: .* finds no GPU here"):
        TARGETS.build("cuda")


def test_threads_are_those_asked_for():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), self.training, tuple(x.shape)))
            return x

    target = TARGETS.build("cpu", threads=2)
    before = torch.get_num_threads()
    with target.ready():
        target.run(Spy(), (noise((1, *SHAPE)),))()
    assert seen == [(2, True, False, (1, *SHAPE))]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", HERE)
def test_one_thread_is_timed_by_what_it_computes(name):
    target = TARGETS.build(name)
    start = target.clock()
    time.sleep(0.05)
    assert target.clock() - start < 0.02
    assert TARGETS.build(name, threads=2).clock is time.perf_counter


def test_onnxruntime_gives_the_modules_outputs_from_a_module_and_from_a_file(tmp_path):
    import onnxruntime

    from kdnas.targets.onnxruntime import _model_bytes

    module, images = student().eval(), noise((2, *SHAPE))
    for p in module.parameters():
        nn.init.uniform_(p, -0.3, 0.3)
    path = tmp_path / "student.onnx"
    path.write_bytes(_model_bytes(module, (images,)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = module(images)
    assert torch.allclose(torch.from_numpy(outputs), expected, atol=1e-4)
    (again,) = TARGETS.build("onnxruntime", batch_size=2).run(path, (images,))()
    assert torch.allclose(torch.from_numpy(again), expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 256])
def test_a_captured_graph_computes_what_eager_does(batch_size):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    module = student()
    eager, graph = (TARGETS.build("cuda", graph=graph, batch_size=batch_size) for graph in (False, True))
    images = noise((batch_size, *SHAPE)).cuda().contiguous(memory_format=torch.channels_last)
    with graph.ready():
        replay = graph._captured(module.cuda().eval(), (images,))
        output = replay()
        images.copy_(torch.rand_like(images))
        replay()
        torch.cuda.synchronize()
        assert torch.allclose(output, module(images), atol=1e-3)
    assert "CUDA graph" in graph.where
    assert "eager" in eager.where
