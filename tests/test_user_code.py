"""Code that the user named: found, or refused with a message."""

from __future__ import annotations

import pytest

from kdnas.errors import ConfigError
from kdnas.user_code import load_user_object


def test_a_file_and_a_module_give_their_object(tmp_path):
    (tmp_path / "mine.py").write_text("def build():\n    return 7\n")
    assert load_user_object("mine.py:build", tmp_path)() == 7
    assert load_user_object("json:dumps", tmp_path)([1]) == "[1]"


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("import sys\nsys.exit('usage: train.py')\n", "mine.py:build", "cannot be imported: SystemExit: usage"),
        ("1 / 0\n", "mine.py:build", "cannot be imported: ZeroDivisionError"),
        ("def build(): pass\n", "mine.py:other", "has no 'other'.*build"),
        ("", "absent.py:build", "there is no file"),
        ("", "mine.py", "is not module:function"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, text, spec, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_user_object(spec, tmp_path)
