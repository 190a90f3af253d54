"""What every proxy keeps."""

from __future__ import annotations

import numpy as np

from kdnas.core.task import image_classification
from kdnas.proxies import PROXIES, Pool
from kdnas.tasks import task_of
from kdnas.testing._member import MemberConformance

_SAMPLES, _CLASSES, _WIDTH = 120, 3, 5


class ProxyConformance(MemberConformance):
    """The suite of proxies: on random features of samples of three classes, of which one is rare."""

    registry = PROXIES

    def pool(self, share: float = 0.25, seed: int = 0) -> Pool:
        """Return samples whose features lie about their class's own place."""
        rng = np.random.default_rng(7)
        labels = rng.permutation(np.repeat(np.arange(_CLASSES), (70, 44, 6)))
        places = rng.normal(size=(_CLASSES, _WIDTH))[labels] + 0.3 * rng.normal(size=(_SAMPLES, _WIDTH))
        task = task_of(image_classification((3, 8, 8), _CLASSES))
        return Pool(labels, share, seed, task, lambda: places.astype(np.float32))

    def test_it_chooses_about_the_share_asked_for_each_sample_once(self) -> None:
        for share in (0.1, 0.25, 0.5):
            places = self.build(self.pool(share))
            assert places.ndim == 1
            assert np.issubdtype(places.dtype, np.integer)
            assert len(np.unique(places)) == len(places)
            assert places.min() >= 0
            assert places.max() < _SAMPLES
            assert abs(len(places) - share * _SAMPLES) <= max(_CLASSES, 0.1 * share * _SAMPLES)

    def test_every_class_has_a_part(self) -> None:
        pool = self.pool(0.1)
        absent = set(range(_CLASSES)) - {int(label) for label in pool.targets[self.build(pool)]}
        assert not absent, "a class has no sample: choose class by class (Pool.chosen, Pool.quotas)"

    def test_its_choice_is_the_same_each_time(self) -> None:
        assert np.array_equal(self.build(self.pool()), self.build(self.pool()))
