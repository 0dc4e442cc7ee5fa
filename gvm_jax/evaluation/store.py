"""The samples of a data set on disk: written as they come, found again after a crash, in the end one sorted file."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from gvm_jax.runtime.files import append_line, claim, complete_lines, write_atomically

Key = tuple[int, int]  # question, sample
PLACES = ("questions.path", "model.path", "weights.checkpoint")


class SampleStore:
    """A folder with `settings.json` and the samples that were drawn with these settings, a line of JSON each.

    While samples are drawn every process appends to a file of its own; `finish` makes them one, `samples.jsonl`, whose
    bytes do not depend on the order in which samples ended, nor on interruptions.

    Args:
      folder: of the data set; made if missing. All processes see it.
      settings: all that a sample depends on, as JSON holds it. Fields of `PLACES` say where it is found and are not
        compared; others hold what is found there.

    Raises:
      ConfigError: the folder has samples with other settings; the message has the fields that differ.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self._folder = folder
        claim(folder / "settings.json", settings, "the samples of this folder are", PLACES)
        self._own = folder / f"samples.{jax.process_index()}.jsonl"

    def load(self) -> dict[Key, dict[str, Any]]:
        """The samples of all processes so far, by question and sample; a torn last line does not count.

        Of two lines for a sample the later one counts: it was graded again.
        """
        parts = sorted(self._folder.glob("samples.*.jsonl"))
        files = [file for file in (self._folder / "samples.jsonl", *parts) if file.exists()]
        lines = [line for file in files for line, _ in complete_lines(file)]
        # "gold": as evaluations before 2026-12 have it
        lines = [{"reference" if name == "gold" else name: value for name, value in line.items()} for line in lines]
        return {(line["question"], line["sample"]): line for line in lines}

    def __enter__(self) -> "SampleStore":
        """Opens this process's file for `write`, without what a crash left half written."""
        if self._own.exists():
            os.truncate(self._own, max((end for _, end in complete_lines(self._own)), default=0))
        self._file = self._own.open("ab", buffering=0)
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a sample, which survives a kill from then on."""
        append_line(self._file, record)

    def finish(self) -> None:
        """Puts all samples into `samples.jsonl`, ordered by question and sample; for one process, when all are done."""
        records = self.load()
        lines = "".join(json.dumps(records[key], allow_nan=False) + "\n" for key in sorted(records))
        write_atomically(self._folder / "samples.jsonl", lines)
        for part in self._folder.glob("samples.*.jsonl"):
            part.unlink()
