"""What can go wrong, and the exit code each kind of failure ends the command with.

    PruneError                      1  never raised itself; an exception of any other class is a bug
    ├── UsageError                  2  options that contradict each other, an unknown name
    ├── GateError                   3  a check that the user asked for did not hold
    ├── InputError                  4  a bad, unsafe or mismatched file
    │   ├── SpecError                  how to build, feed and check the model
    │   │   └── MissingSpecError       nothing says it
    │   ├── CheckpointError            the parameters on disk
    │   └── DataError                  the samples
    ├── OutputError                 4  a file or folder that cannot be written
    ├── NotPrunableError            5  the model cannot be pruned as asked
    │   ├── TraceError                 its forward pass could not be followed
    │   ├── ScoreError                 a method cannot score a group
    │   ├── BudgetError                no plan meets the budget
    │   └── ExportError                no file of this kind can be made of it
    ├── ProofError                  6  the smaller model disagrees with the masked dense model
    └── PeerError                   1  another of the processes that share the work failed

A message says where, what was found, what was expected, and what to do; it is one or two lines long.
"""

from __future__ import annotations


class PruneError(Exception):
    """A failure that the user can understand and act on."""

    exit_code = 1


class UsageError(PruneError):
    """Options that contradict each other, or a name nobody knows."""

    exit_code = 2


class GateError(PruneError):
    """A check that the user asked for did not hold."""

    exit_code = 3


class InputError(PruneError):
    """A file that is bad, unsafe, or does not match the others."""

    exit_code = 4


class SpecError(InputError):
    """The spec is incomplete, malformed or not trusted."""


class MissingSpecError(SpecError):
    """Nothing says how to build the model of a checkpoint."""


class CheckpointError(InputError):
    """The checkpoint cannot be read, or does not fit the model."""


class DataError(InputError):
    """The samples cannot be read, or do not fit the model."""


class OutputError(PruneError):
    """A file or folder cannot be written, or is already there."""

    exit_code = 4


class NotPrunableError(PruneError):
    """The model cannot be pruned as asked."""

    exit_code = 5


class TraceError(NotPrunableError):
    """The forward pass of the model could not be followed."""


class ScoreError(NotPrunableError):
    """A method cannot score a group, or scored it with a number that is not finite."""


class BudgetError(NotPrunableError):
    """No plan meets the budget under the constraints given."""


class ExportError(NotPrunableError):
    """The model cannot be written in this form: as ONNX, or as a folder of Hugging Face."""


class ProofError(PruneError):
    """The smaller model disagrees with the masked dense model."""

    exit_code = 6


class PeerError(PruneError):
    """Another of the processes that share the work failed, or says nothing."""
