"""What exceptions of several packages have in common."""


class InputError(ValueError):
    """A command was given what it cannot use: a flag or field, or data, a model or a folder that one of them names."""
