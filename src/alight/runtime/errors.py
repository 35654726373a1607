"""The one exception that stands for a mistake of the user's, as opposed to a bug of ours."""


class InputError(ValueError):
    """Something the user gave cannot be used: an unknown key, a missing file, a wrong shape.

    The message is one paragraph that names the cause and the mend. The command line prints it without a
    traceback and exits with code 2; library users catch it as a `ValueError`.
    """

    def __init__(self, message: str = "") -> None:
        # A data loader's worker sends its traceback along as text; the user's paragraph is what stands at its end.
        paragraph = str(message).rpartition("InputError: ")[2].strip()
        # names of files may hold bytes that are not UTF-8, which no console or log takes
        super().__init__(paragraph.encode("utf-8", "backslashreplace").decode("utf-8"))
