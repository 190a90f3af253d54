"""What every target keeps, on the targets that this machine has."""

import inspect

import pytest
import torch
from torch import nn

from kdnas.core.measurement import Measurement
from kdnas.errors import ConfigError
from kdnas.nn.blocks import ResidualBlock, ResidualPlan, Student, StudentPlan
from kdnas.nn.timing import interleaved, reference_network
from kdnas.targets import TARGETS, EnergyCounter, Missing, Target, noise

SHAPE = (3, 16, 16)
HERE = [name for name in TARGETS.names() if name != "cuda"]


def student(width: int = 8) -> Student:
    stages = ((ResidualPlan(width, width, 0, 1, "identity"),),)
    return Student(StudentPlan(3, width, 1, stages, 0, 5), ResidualBlock)


@pytest.fixture(params=[*HERE, pytest.param("cuda", marks=pytest.mark.gpu)])
def name(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture
def target(name) -> Target:
    return TARGETS.build(name, batch_size=2)


def test_a_run_is_a_whole_pass_and_leaves_the_network_and_torch_as_they_were(target):
    module = student().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with target.ready():
        run = target.run(module, (2, *SHAPE))
        run()
        run()
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in module.parameters())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_larger_student_takes_longer_and_more_memory(target):
    students = [student(4), student(96)]
    reference, images = reference_network()
    with target.ready():
        runs = [target.run(module, (2, *SHAPE)) for module in students]
        timing = interleaved(runs, target.run(reference, tuple(images.shape)), rounds=15, warmup=2, clock=target.clock)
        small, large = (target.peak_memory_bytes(module, SHAPE) for module in students)
    medians = [sorted(timing.ratios(index))[7] for index in (0, 1)]
    if target.where.startswith(("cpu", "onnxruntime")):  # on a GPU both are launches
        assert medians[1] > 2 * medians[0] > 0
    assert isinstance(small, Measurement)
    assert isinstance(large, Measurement)
    assert large.value > small.value > 0
    assert "batch 2" in small.context


def test_says_where_it_ran(target, name):
    assert "batch 2" in target.where
    assert "float32" in target.where


def test_energy_is_a_reading_or_a_reason(target):
    counter = target.energy_counter()
    if isinstance(counter, Missing):
        assert counter.reason
        return
    assert isinstance(counter, EnergyCounter)
    start = counter.read()
    assert counter.spent_mj(start, counter.read()) >= 0


def test_bad_options_are_refused(name):
    for options, message in (({"batch_size": 0}, "batch_size"), ({"wings": 1}, "wings: unknown key")):
        with pytest.raises(ConfigError, match=message):
            TARGETS.build(name, **options)


def test_variants_can_be_built_from_the_options(name):
    member = TARGETS.get(name)
    for variant in member.variants:
        assert not TARGETS.problems(name, variant)
    assert all(p.kind is p.KEYWORD_ONLY for p in list(inspect.signature(member).parameters.values()))


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
        target.run(Spy(), (1, *SHAPE))()
    assert seen == [(2, True, False, (1, *SHAPE))]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", HERE)
def test_one_thread_is_timed_by_what_it_computes(name):
    import time

    target = TARGETS.build(name)
    start = target.clock()
    time.sleep(0.05)
    assert target.clock() - start < 0.02
    assert TARGETS.build(name, threads=2).clock is time.perf_counter


def test_onnxruntime_gives_the_modules_outputs_from_a_module_and_from_a_file(tmp_path):
    import onnxruntime

    from kdnas.targets.onnxruntime import _model_bytes

    module, shape = student().eval(), (2, *SHAPE)
    for p in module.parameters():
        nn.init.uniform_(p, -0.3, 0.3)
    path = tmp_path / "student.onnx"
    path.write_bytes(_model_bytes(module, shape))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"images": noise(shape).numpy()})
    with torch.no_grad():
        expected = module(noise(shape))
    assert torch.allclose(torch.from_numpy(outputs), expected, atol=1e-4)
    (again,) = TARGETS.build("onnxruntime", batch_size=2).run(path, shape)()
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
        replay = graph._captured(module.cuda().eval(), images)
        output = replay()
        images.copy_(torch.rand_like(images))
        replay()
        torch.cuda.synchronize()
        assert torch.allclose(output, module(images), atol=1e-3)
    assert "CUDA graph" in graph.where
    assert "eager" in eager.where
