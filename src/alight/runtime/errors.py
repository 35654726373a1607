"""The exception for a user's mistake, as opposed to a bug, and the exit codes of both."""

EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the shell's convention for a process ended by Ctrl-C


class InputError(ValueError):
    """An input cannot be used: an unknown key, a missing file, a wrong shape.

    The message is one paragraph that names the cause and the remedy. The command line prints it without a traceback
    and exits with code 2; library users catch it as a `ValueError`.
    """

    def __init__(self, message: str = "") -> None:
        # a data loader's worker prepends its traceback as text
        paragraph = str(message).rpartition("InputError: ")[2].strip()
        # file names may hold bytes that are not UTF-8, which consoles and logs refuse
        super().__init__(paragraph.encode("utf-8", "backslashreplace").decode("utf-8"))


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of another exception for use within a message: one line of limited length."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


def is_out_of_memory(error: BaseException) -> bool:
    """True where the memory of the machine or of its accelerator is full."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or of_torch


def exit_code(error: BaseException) -> int:
    """The code with which a process leaves after an exception."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "exit_code", EXIT_INTERRUPTED))
    users = isinstance(error, InputError | OSError) or is_out_of_memory(error)
    return EXIT_USER_ERROR if users else EXIT_BUG
