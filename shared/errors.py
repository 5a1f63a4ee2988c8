"""The error that a user's own mistake raises."""


class InputError(ValueError):
    """Something the user gave is wrong: a file, a configuration key, an argument.

    The message is one line that names it and says what was expected. Commands print that line, without a traceback.
    """
