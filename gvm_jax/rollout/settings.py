"""What a rollout engine's programs are compiled for: lengths, slots, pages and how tokens are chosen."""

import dataclasses

from gvm_jax.config import ConfigError
from gvm_jax.rollout.pages import least_pages, pages_for

PREFILL_CHUNK = 32  # prompt tokens in a row of a prefill call; a prompt's last chunk is the only padding


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Static settings; the fields of `config.rollout` under the same names.

    Raises:
      ConfigError: `pages` cannot hold one sequence of maximal length and its prompt.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    slots: int
    page_size: int
    pages: int = 0  # 0 = as many as the slots can ever need
    block_steps: int = 8
    prefill_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0
    attention: str = "auto"
    weight_dtype: str = "compute"
    tensor: int = 0  # devices of a replica; 0 = the mesh's tensor axis

    @classmethod
    def from_config(cls, config) -> "RolloutSettings":
        """From a run's config (`gvm_jax/config/fields.py`)."""
        fields = {f.name: config.rollout[f.name] for f in dataclasses.fields(cls) if f.name in config.rollout}
        return cls(max_prompt_tokens=config.data.max_prompt_tokens, **fields)

    def __post_init__(self):
        """Check `pages`."""
        least = least_pages(self.max_prompt_tokens, self.max_new_tokens, self.page_size)
        if self.pages and self.pages < least:
            raise ConfigError(
                f"rollout.pages = {self.pages}: cannot hold one sequence of data.max_prompt_tokens = "
                f"{self.max_prompt_tokens} + rollout.max_new_tokens = {self.max_new_tokens} tokens in pages of "
                f"{self.page_size}; give at least {least}, or 0 for as many as the slots can need"
            )

    @property
    def max_tokens(self) -> int:
        """The longest sequence."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def num_pages(self) -> int:
        """Pages of a layer, the trash page included."""
        sequence = least_pages(self.max_prompt_tokens, self.max_new_tokens, self.page_size) - 1
        ahead = pages_for(self.prefill_tokens, PREFILL_CHUNK) + pages_for(self.prefill_tokens, self.page_size)
        return self.pages or 1 + self.slots * sequence + ahead

    @property
    def widths(self) -> list[int]:
        """Batch sizes that the decode program is compiled for: as samples run out, fewer rows decode."""
        halves = [self.slots // 2**i for i in range(1, 4)]
        return sorted({self.slots, *(width for width in halves if width >= 8)})
