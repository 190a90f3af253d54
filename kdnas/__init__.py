"""kdnas: search for the students that knowledge distillation trains best.

    import kdnas

    run = kdnas.search("studies/digits", trials=8)
    run.front                          # a DataFrame, one student a row
    student = run.student("best")      # a torch module
    run.export("best", "student", formats=["onnx"])

Everything is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from kdnas.version import __version__

if TYPE_CHECKING:
    from kdnas.api import Run, Study, load_run, search

__all__ = ["Run", "Study", "__version__", "load_run", "search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kdnas' has no attribute {name!r}")
    from kdnas import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
