"""What the README shows is true: its YAML loads, its commands and members exist, its figures are there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import kdnas.cli
from kdnas.cli.main import verbs
from kdnas.study.loading import load_study
from kdnas.study.members import FAMILIES
from kdnas.study.spaces import load_space


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    """Return the fenced blocks of that language, in order."""
    parts = re.split(r"^```(.*)\n", readme, flags=re.MULTILINE)
    return [text for opened, text in zip(parts[1::4], parts[2::4], strict=True) if opened == language]


def test_the_study_and_the_space_load(readme, tmp_path):
    study, space = blocks(readme, "yaml")
    (tmp_path / "study.yaml").write_text(study)
    assert load_study(tmp_path).config.name == "flowers"
    (tmp_path / "space.yaml").write_text(space)
    assert load_space("space.yaml", tmp_path).count() > 1000


def test_every_command_exists_and_every_verb_is_shown(readme):
    commands = "\n".join([*blocks(readme, "bash"), *blocks(readme, "")])
    shown = set(re.findall(r"(?:^|&& )kdnas ([a-z]+)", commands, flags=re.MULTILINE))
    (several,) = re.findall(r"^kdnas ([a-z]+(?: \| [a-z]+)+)$", commands, flags=re.MULTILINE)
    assert shown | set(several.split(" | ")) == set(verbs())


def test_the_supernet_of_the_help_page_loads(readme, tmp_path):
    study, _ = blocks(readme, "yaml")
    page = (Path(kdnas.cli.__file__).with_name("pages") / "training.txt").read_text(encoding="utf-8")
    (shared,) = re.findall(r"^  supernet:.*\n(?:  .*\n)+", page, flags=re.MULTILINE)
    own = re.sub(r"^(rungs|tune):.*\n(?:  .*\n)*", "", study, flags=re.MULTILINE)
    (tmp_path / "study.yaml").write_text(own + textwrap.dedent(shared))
    assert [rung.start for rung in load_study(tmp_path).config.fidelities] == ["supernet", "supernet", "random"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_named(readme, family):
    assert f"`{family}`" in readme


def test_the_links_and_pictures_lead_somewhere(readme, repository):
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("https://") or (repository / target).exists(), target


def test_the_commands_that_ci_runs_are_marked(readme):
    for name in ("run", "test"):
        assert re.search(rf"<!-- ci: {name} -->\n```bash\n(.+)\n```", readme)
