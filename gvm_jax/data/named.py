r"""Data sets that are known by a short name, which brings hub path, splits and columns; a folder is named as ./gsm8k.

Paths, splits and columns are those that public training and evaluation code asks the hub for; the hub itself was not
asked, so a set that was changed since is an error that lists the columns found. Numbers of rows are of the same origin.

- numina: NuminaMath-CoT, the training data of arXiv 2505.02391; the answer is the last \boxed{} of `solution`.
- math: MATH (arXiv 2103.03874) in one configuration, 7,500 and 5,000 rows.
- gsm8k: arXiv 2110.14168, 7,473 and 1,319 rows; the answer follows "####".
- deepscaler: DeepScaleR's training problems, from AIME, AMC, MATH, Omni-MATH and STILL.
- math500: the 500 of MATH's test problems that arXiv 2305.20050 holds out.
- minerva: 272 rows, arXiv 2206.14858. olympiadbench: 674 rows of text and mathematics, arXiv 2402.14008; its answers
  are lists, of which the first counts. aime24: both papers of AIME 2024, 30 rows. amc23: 40 rows.
"""

from typing import NamedTuple


class Named(NamedTuple):
    """The place of a data set on the hub, and the columns that are read; fields as in `load_rows`."""

    path: str
    train: str  # split to train on
    test: str  # split to evaluate on, and to keep out of training data
    problem_column: str = "problem"
    answer_column: str = "answer"
    answer_from: str = "column"
    answer_after: str = ""
    subset: str = ""


NAMED = {
    "numina": Named("AI-MO/NuminaMath-CoT", "train", "test", answer_column="solution", answer_from="boxed"),
    "math": Named("DigitalLearningGmbH/MATH-lighteval", "train", "test", answer_column="solution", answer_from="boxed"),
    "gsm8k": Named("openai/gsm8k", "train", "test", "question", answer_after="####", subset="main"),
    "deepscaler": Named("agentica-org/DeepScaleR-Preview-Dataset", "train", "train"),
    "math500": Named("HuggingFaceH4/MATH-500", "test", "test"),
    "minerva": Named("math-ai/minervamath", "test", "test", "question"),
    "olympiadbench": Named("math-ai/olympiadbench", "test", "test", "question", "final_answer"),
    "aime24": Named("HuggingFaceH4/aime_2024", "train", "train"),
    "amc23": Named("math-ai/amc23", "test", "test", "question"),
}
