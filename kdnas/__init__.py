"""kdnas: search for the students that knowledge distillation trains best."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdnas")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
