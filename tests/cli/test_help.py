"""`kdnas help`: the pages there are."""

from __future__ import annotations

from kdnas import testing
from kdnas.cli.main import main
from kdnas.study.members import FAMILIES


def test_the_pages_are_listed_each_by_its_first_line(capsys):
    assert main(["help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("kdnas help cluster") and "SLURM" in line for line in lines)


def test_a_page_is_shown_whole(capsys):
    assert main(["help", "cluster"]) == 0
    assert "RAY_AUTH_TOKEN" in capsys.readouterr().out


def test_a_page_that_is_not_there_is_told_with_those_that_are(capsys):
    assert main(["help", "clusters"]) == 2
    assert "did you mean 'cluster'?" in capsys.readouterr().err


def test_the_page_on_plugins_names_every_family_and_every_suite(capsys):
    assert main(["help", "plugins"]) == 0
    page = capsys.readouterr().out
    for family in FAMILIES:
        assert f"\n    {family} " in page, family
    for suite in set(testing.__all__) - {"MemberConformance", "suites"}:
        assert suite in page, suite
