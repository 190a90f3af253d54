import hashlib

from kdnas.core.seeds import derive_seed


def test_a_seed_is_a_function_of_its_path_in_range():
    assert derive_seed(7, "trial", 3) == derive_seed(7, "trial", 3)
    assert all(0 <= derive_seed(0, "x", i) < 2**63 for i in range(200))


def test_every_part_of_the_path_matters():
    seeds = {derive_seed(r, *path) for r in range(20) for path in [(), ("a",), ("b",), ("a", 0), ("a", 1), (0, "a")]}
    assert len(seeds) == 120


def test_the_value_does_not_change_between_versions_or_machines():
    assert derive_seed(1, "a", 2) == int(hashlib.sha256(b"1/a/2").hexdigest()[:16], 16) // 2
