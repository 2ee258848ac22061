"""Failures a user can fix, one class per kind, each with the exit code its scripts end with.

Everything raised from here is shown as one line on stderr. Any other exception is a bug and keeps its traceback (exit 1).
The numbers are those of BSD's `sysexits.h`, plus 3 for a batch of which some items failed (uv itself uses 1 and 2).
"""


class ScriptError(Exception):
    """Base of every failure shown to the user as one line. `exit_code` is the exit status of the process."""

    exit_code = 1


class UsageError(ScriptError):
    """A flag, a value or a combination of them that the script does not accept."""

    exit_code = 2


class BatchError(ScriptError):
    """A batch of several items in which at least one failed."""

    exit_code = 3


class InvalidInputError(ScriptError):
    """An input exists and cannot be used: unreadable, damaged, of the wrong kind or outside the limits."""

    exit_code = 65


class MissingInputError(ScriptError):
    """An input does not exist."""

    exit_code = 66


class UnavailableError(ScriptError):
    """The machine lacks something: the device asked for, memory, an optional program or package."""

    exit_code = 69


class PostConditionError(ScriptError):
    """The result was made and failed its own check; nothing is left at its final name."""

    exit_code = 70


class OutputExistsError(ScriptError):
    """The output is there already and `--overwrite` was not given."""

    exit_code = 73


class OutputWriteError(ScriptError):
    """The output cannot be written: no permission, no space, a read-only folder."""

    exit_code = 74


class TemporaryError(ScriptError):
    """Trying again later may work: network, a server error of the Hub, a lock that another process holds."""

    exit_code = 75


class AccessError(ScriptError):
    """A gated or private repository, or a token that is missing or refused."""

    exit_code = 77


class ConfigError(ScriptError):
    """A configuration file or the environment is wrong."""

    exit_code = 78
