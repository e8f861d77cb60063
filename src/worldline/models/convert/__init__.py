"""Published checkpoints in, our model folders out, and back: `inspect` says what a file is, `convert` renames it."""

from worldline.models.convert.detect import inspect
from worldline.models.convert.errors import ConvertError
from worldline.models.convert.export import convert
from worldline.models.convert.report import CheckpointReport

__all__ = ["CheckpointReport", "ConvertError", "convert", "inspect"]
