"""What can be wrong with a checkpoint, one type each. All are WorldlineErrors: value, expectation and mend in the message."""

from __future__ import annotations

from collections.abc import Collection

from worldline.schema import WorldlineError


class ConvertError(WorldlineError):
    """A checkpoint that cannot be read or converted."""


class NotACheckpointError(ConvertError):
    """The file is no container of tensors that we read: a web page, an LFS pointer, an archive of something else."""


class CorruptFileError(ConvertError):
    """The container is cut short or contradicts itself."""


class UnsafePickleError(ConvertError):
    """The pickle wants to run code. Nothing of it was run."""


class UnknownFamilyError(ConvertError):
    """The tensors belong to no model family that we convert, or to more than one with equal right."""


class KeysError(ConvertError):
    """Tensors are unexplained, missing, doubled or of the wrong shape."""


class InDoubtError(ConvertError):
    """The weights alone do not decide something; say it with an option."""


class OutputError(ConvertError):
    """The result cannot be written where it should go."""


def some(names: Collection[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
