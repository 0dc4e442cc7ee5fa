"""The package's one exception."""

from gvm_jax.errors import InputError


class DataError(InputError):
    """Data, a tokenizer or a config field that names them cannot be used; the message says what to do."""
