"""A search that has nothing to show says so: its exit status, and the commonest reason, in words that can be shown."""

from __future__ import annotations

import pytest
import scored_study

from kdnas.core.words import commonest, printable
from kdnas.record.front import failure
from kdnas.record.storage import load_run


def scoring(body: str) -> str:
    return f"def score(choices, epochs, data_fraction, seed):\n    {body}\n\n" + scored_study.SCORE.partition("\n\n")[2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError(f'no such width {choices[\"a\"]}')", "ValueError: no such width"),
        ("exit('cannot go on')", "SystemExit: cannot go on"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_search_whose_trials_all_fail_has_failed(scored_search, tmp_path, body, reason):
    study = scored_study.write(tmp_path, score=scoring(body))
    code, _, stderr = scored_search(study)
    assert code == 1, stderr
    assert reason in stderr
    assert "(3 of 3)" in stderr
    assert (tmp_path / "run" / "trials.csv").read_text().count("failed") == 3  # the report is written all the same
    code, _, stderr = scored_search(study)
    assert code == 1  # asked again there is nothing to do, and still nothing to show
    assert "(3 of 3)" in stderr
    (study / "score.py").write_text(scored_study.SCORE)
    assert failure(load_run(tmp_path / "run"))


def test_one_score_is_enough(scored_search, tmp_path):
    study = scored_study.write(
        tmp_path, score=scoring("return {'accuracy': .5} if seed % 2 else 1 / 0"), budget={"trials": 8}
    )
    code, _, stderr = scored_search(study)
    states = [trial.state for trial in load_run(tmp_path / "run").trials]
    assert (code, {*states}) == (0, {"complete", "failed"}), stderr


def test_a_front_whose_retrainings_all_fail_has_failed(scored_search, tmp_path):
    found = "next(f.frame.f_locals['job'] for f in inspect.stack() if 'job' in f.frame.f_locals)"
    body = f"import inspect; assert {found}.repeat is None, 'x'; return {{'accuracy': .5}}"
    study = scored_study.write(tmp_path, score=scoring(body))
    code, _, stderr = scored_search(study)
    assert code == 1
    assert "every retraining of the front failed, all for this reason" in stderr
    assert "AssertionError: x" in stderr


def test_what_a_trial_says_of_its_failure_can_be_shown_anywhere(scored_search, tmp_path):
    hostile = "'\\x1b[2J\\x1b[31mred\\x1b[0m\\x07 \\ud800 \\x9b1m' + 'x' * 5_000_000"
    study = scored_study.write(tmp_path, score=scoring(f"raise ValueError({hostile})"))
    code, stdout, stderr = scored_search(study)
    assert code == 1
    run = load_run(tmp_path / "run")
    for text in (stdout, stderr, (tmp_path / "run" / "trials.csv").read_text(), *(t.reason for t in run.trials)):
        assert "red" in text
        assert all(character.isprintable() or character == "\n" for character in text)
    assert all(len(trial.reason) < 3000 and "characters)" in trial.reason for trial in run.trials)
    assert (tmp_path / "run" / "study.db").stat().st_size < 1_000_000


def test_one_line_of_any_text():
    assert printable("a\n\tb  c\x00\x7f") == "a b  c"
    assert printable("\x1b]0;title\x07shown \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\") == "shown link"
    assert printable("é" * 50, longest=10) == f"{'é' * 10} ... (50 characters)"
    assert printable("größe 試験 👩") == "größe 試験 👩"


def test_reasons_that_differ_in_numbers_are_one_kind():
    reasons = ["loss is nan in epoch 3", "killed", "loss is nan in epoch 14"]
    assert commonest(reasons) == ("loss is nan in epoch 3", 2)
    with pytest.raises(ValueError, match="no reasons"):
        commonest([])
