"""Short signals of one channel: a kind of work that kdnas has not, that of `kdnas help tasks`."""

from page_code import examples

SOURCE = examples("tasks")["waves/signals.py"]
exec(compile(SOURCE, __file__, "exec"))
