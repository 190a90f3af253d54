"""What a training computes with is decided by what the machine is, never by a clock, and only where it is `auto`."""

from pathlib import Path

import pytest
import torch

from kdnas.training import numerics
from kdnas.training.fused_norm import library
from kdnas.training.numerics import bfloat16_is_native, bfloat16_speed, computing, in_bfloat16, settled
from kdnas.training.recipe import NUMERICS, Training, numerics_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_bfloat16_on_this_processor_is_what_the_kernel_says() -> None:
    information = Path("/proc/cpuinfo")
    if not information.exists() or "avx" not in information.read_text():
        pytest.skip("no x86 /proc/cpuinfo")
    words = set(information.read_text().split())
    assert bfloat16_is_native(CPU) == bool(words & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_on_cuda_follows_the_compute_capability(monkeypatch, capability, native) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_is_native(CUDA) is native
    assert settled(Training(), CUDA).precision == ("bfloat16" if native else "float32")


def test_bfloat16_is_not_assumed_elsewhere(monkeypatch) -> None:
    assert not bfloat16_is_native(torch.device("meta"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert not bfloat16_is_native(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_what_is_auto_is_decided_without_a_clock(monkeypatch, native) -> None:
    monkeypatch.setattr(numerics, "bfloat16_is_native", lambda device: native)
    monkeypatch.setattr(numerics.time, "perf_counter", None)
    decided = settled(Training(), CPU)
    assert (decided.precision, decided.threads) == ("bfloat16" if native else "float32", 1)
    assert in_bfloat16(Training(), CPU) is native
    assert settled(decided, CPU) is decided


@pytest.mark.parametrize(("compiler", "fused"), [("", False), ("no-such-compiler", False), ("sh", True)])
def test_norms_are_fused_where_there_is_a_compiler(monkeypatch, compiler, fused) -> None:
    monkeypatch.setenv("CC", compiler)
    assert settled(Training(), CPU).fused_norms is fused
    assert settled(Training(threads=2), CPU).fused_norms is False
    assert settled(Training(fused_norms=False), CPU).fused_norms is False


def test_what_is_stated_is_kept_and_what_is_not_said_stays_out_of_records() -> None:
    stated = Training(precision="float32", threads=3, fused_norms=False)
    assert settled(stated, CPU) is stated
    assert not {"threads", "fused_norms"} & Training().model_dump().keys()
    assert {name: stated.model_dump()[name] for name in NUMERICS} == {name: getattr(stated, name) for name in NUMERICS}
    assert numerics_of(Training(threads=2), stated) == Training(precision="float32", threads=2, fused_norms=False)
    assert numerics_of(Training(), {"precision": "auto"}) == Training()


def test_threads_are_those_of_the_training_and_given_back() -> None:
    before = torch.get_num_threads()
    with computing(Training(threads=before + 1), CPU):
        assert torch.get_num_threads() == before + 1
    with computing(Training(threads=before + 1), CUDA), computing(Training(), CPU):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_the_speed_that_a_user_is_told_draws_nothing() -> None:
    before = torch.get_rng_state()
    assert bfloat16_speed() > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(library() is None, reason="no C compiler")
def test_a_training_that_cannot_fuse_its_norms_says_so(monkeypatch) -> None:
    from kdnas.training.loop import Trained

    trained = Trained(torch.nn.Identity(), 1.0, (), 0.0, 0.0, Training().fidelity, unfused=True)
    assert any("C compiler" in note for note in trained.notes)
