"""The version of kdnas that runs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdnas")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
