import sys
import types

import pytest
import torch

from kdnas.targets import EnergyCounter, Missing, _energy


def domain(folder, name, label, energy_uj, wraps_at_uj=1_000_000):
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(label + "\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at_uj}\n")
    return path / "energy_uj"


def test_packages_are_added_up_and_parts_of_them_are_not(tmp_path):
    first = domain(tmp_path, "intel-rapl:0", "package-0", 1_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 500)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 7_000)
    domain(tmp_path, "intel-rapl:2", "psys", 9_000)
    counter = _energy.processor_energy(tmp_path)
    assert isinstance(counter, EnergyCounter)
    start = counter.read()
    first.write_text("5000\n")
    second.write_text("7500\n")
    assert counter.spent_mj(start, counter.read()) == pytest.approx(4.5)


def test_a_counter_that_wrapped_goes_on(tmp_path):
    counter_file = domain(tmp_path, "intel-rapl:0", "package-0", 999_000)
    counter = _energy.processor_energy(tmp_path)
    start = counter.read()
    counter_file.write_text("3000\n")
    assert counter.spent_mj(start, counter.read()) == pytest.approx(4.0)


def test_without_a_counter_there_is_a_reason(tmp_path):
    assert "no RAPL counter" in _energy.processor_energy(tmp_path).reason
    assert "no RAPL counter" in _energy.processor_energy(tmp_path / "nothing").reason
    domain(tmp_path, "intel-rapl:0", "package-0", "secret")
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    missing = _energy.processor_energy(tmp_path)
    assert isinstance(missing, Missing)
    assert "cannot be read: No such file" in missing.reason


class FakeNvml(types.ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, fails=None):
        super().__init__("pynvml")
        self.energy_mj, self.fails, self.asked = 1000, fails, []

    def nvmlInit(self):
        if self.fails == "init":
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.fails == "energy":
            raise self.NVMLError("Not Supported")
        return self.energy_mj


@pytest.fixture
def nvml(monkeypatch):
    def install(fails=None):
        fake = FakeNvml(fails)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        properties = types.SimpleNamespace(uuid="1234-abcd")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return fake

    return install


def test_the_gpu_is_asked_for_by_its_identity_and_counts_in_millijoules(nvml):
    fake = nvml()
    counter = _energy.gpu_energy(torch.device("cuda:1"))
    start = counter.read()
    fake.energy_mj += 250
    assert counter.spent_mj(start, counter.read()) == 250
    assert fake.asked == [b"GPU-1234-abcd"]


@pytest.mark.parametrize(("fails", "reason"), [("init", "Driver Not Loaded"), ("energy", "Not Supported")])
def test_what_nvml_refuses_is_the_reason(nvml, fails, reason):
    nvml(fails)
    assert reason in _energy.gpu_energy(torch.device("cuda")).reason


def test_a_missing_package_is_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in _energy.gpu_energy(torch.device("cuda")).reason
