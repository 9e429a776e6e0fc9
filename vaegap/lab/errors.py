"""Errors of the lab: each message says what went wrong, where, and how to cure it."""

from __future__ import annotations

__all__ = ["CheckpointError", "DataError", "GridError", "LabError", "LockError", "RecordError", "StorageError"]


class LabError(RuntimeError):
    """Something outside the numbers failed: a file, a folder, a run."""


class DataError(LabError):
    """A data set is missing, unreadable, or not the one it should be."""


class StorageError(LabError):
    """A file could not be written: the disk is full, or the folder is read-only."""


class CheckpointError(LabError):
    """A checkpoint is truncated, damaged, or not ours."""


class RecordError(LabError):
    """A run record is not valid."""


class LockError(LabError):
    """Another process holds the run, or has taken it over."""


class GridError(LabError):
    """A grid file, or a parameter given to a notebook, is wrong."""
