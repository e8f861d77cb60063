"""worldline: turn a pretrained video diffusion model into a real-time interactive world model."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("worldline")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
