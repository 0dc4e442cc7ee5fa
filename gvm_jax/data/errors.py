"""The package's one exception."""


class DataError(ValueError):
    """Data, a tokenizer or a config field that names them cannot be used; the message says what to do."""
