"""The examples of `kdnas help plugins`, in one file."""

from page_code import examples

WHOLE = {heading: code for heading, code in examples("plugins").items() if ", WHOLE" in heading}
SOURCE = "\n".join(WHOLE.values())
exec(compile(SOURCE, __file__, "exec"))
