"""What the demo shows: which model, prepared from which text, tuned on whose rows, and which question it answers.

    smollm2   SmolLM2-135M-Instruct on the notes of a household; nobody but the household knows who sees to what
    tiny      a Llama pretrained on the spot on text from ``grammar.py``, tuned on the messages of ``messages.py``
    own       any other model, on the household's notes or on rows of the user's

Knows nothing about processes or servers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grammar import document
from messages import write_splits
from smollm2 import PackagedModel

from shared.api import PrepareRequest
from shared.errors import DataError
from shared.perturbation import random_generator

HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")
CORPUS, MESSAGES = 0, 1
GRAMMAR_DOCUMENTS, HELD_OUT_DOCUMENTS = 20_000, 400
LEAST_ROWS = 20

HOUSEHOLD = HERE / "household"
HOUSEHOLD_TEMPLATE, HOUSEHOLD_LABEL_WORDS = "{text} Ask {label}", "Emma=Emma,Lucy=Lucy"
REAL_STEPS, REAL_SCHEDULE = 200, ("--batch", "8", "--validate-every", "50")

TINY_TEMPLATE, TINY_LABEL_WORDS, TINY_STEPS = "{text} It was {label}", "negative=terrible,positive=great", 1500

# Chosen for its time: the demo learns with the mask that so little text gives. An operator who has minutes more takes
# the defaults.
QUICK_CALIBRATION = {"sequences": 8, "tokens_per_sequence": 128}
QUICK_QUANTIZER = {"compensation": "none"}


@dataclass(frozen=True, slots=True)
class Cloud:
    """What the service reads, and what it is asked for.

    Attributes:
        request: The body of ``POST /prepare-model``.
        model_root: Folder that the model lies in; None for a model on the hub.
        text_root: Folder of the calibration text; None for C4 on the hub.
        credit: Who made the model, where it is not the user's own.
    """

    request: PrepareRequest
    model_root: Path | None = None
    text_root: Path | None = None
    credit: str | None = None


@dataclass(frozen=True, slots=True)
class Personal:
    """Rows of one person, how they are worded for a model, and how far to tune on them.

    Attributes:
        files: Split → its file.
        question: One test row, whose right label only the owner of the rows knows; None where the demo does not know
            how the user's own rows read.
        wording: Options of ``zo-device tune`` that say how a row reads.
        schedule: Its options that say how far to go.
    """

    files: dict[str, Path]
    question: dict[str, str] | None
    wording: tuple[str, ...]
    schedule: tuple[str, ...]


def smollm2_model(kept: Path, model: PackagedModel, seed: int) -> Cloud:
    """Return a quick preparation of the downloaded model: little calibration, little held-out text."""
    request = {
        "model": model.path,
        "name": "demo/smollm2",
        "calibration": {"text": "everyday.jsonl", "seed": seed} | QUICK_CALIBRATION,
        "quantizer": QUICK_QUANTIZER,
        "evaluation": {"documents": 20},
    }
    root = kept.parents[len(Path(model.path).parts) - 1]
    return Cloud(PrepareRequest.model_validate(request), root, HERE / "texts", model.credit)


def tiny_model(output: Path, seed: int, advance: Callable[[int, int], None]) -> Cloud:
    """Pretrain the tiny model and write its text: held-out documents first, then the ones it saw.

    Args:
        output: Folder for both.
        seed: Seed of the text and the pretraining.
        advance: Receives how many steps are done, and of how many.
    """
    from pretrain import STEPS, pretrain

    generator = random_generator(seed, CORPUS)
    corpus = [document(generator) for _ in range(HELD_OUT_DOCUMENTS + GRAMMAR_DOCUMENTS)]
    (output / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in corpus))
    pretrain(output / "tiny-llama", corpus[HELD_OUT_DOCUMENTS:], generator, lambda done: advance(done, STEPS))
    request = {
        "model": "tiny-llama",
        "name": "demo/tiny",
        "calibration": {"text": "text.jsonl", "seed": seed, "sequences": 128, "tokens_per_sequence": 128},
        "evaluation": {"documents": HELD_OUT_DOCUMENTS},
    }
    return Cloud(PrepareRequest.model_validate(request), output, output)


def own_model(model: str, text: str, seed: int) -> Cloud:
    """Return a preparation as the service does it by default, of what is a path here, or else of what the hub has."""
    model_path, text_path = Path(model).expanduser(), Path(text).expanduser()
    request = {
        "model": model_path.resolve().name if model_path.exists() else f"hub:{model.removeprefix('hub:')}",
        "name": "demo/model",
        "calibration": {"text": text_path.resolve().name if text_path.exists() else text, "seed": seed},
    }
    return Cloud(
        PrepareRequest.model_validate(request),
        model_path.resolve().parent if model_path.exists() else None,
        text_path.resolve().parent if text_path.exists() else None,
    )


def household_rows(steps: int | None) -> Personal:
    """Return the notes of a household; ``household/README.md`` says what they are."""
    files = {split: HOUSEHOLD / f"{split}.jsonl" for split in SPLITS}
    return Personal(
        files=files,
        question=first_row(files["test"]),
        wording=("--template", HOUSEHOLD_TEMPLATE, "--label-words", HOUSEHOLD_LABEL_WORDS),
        schedule=("--steps", str(steps or REAL_STEPS), *REAL_SCHEDULE),
    )


def tiny_rows(output: Path, seed: int, steps: int | None) -> Personal:
    """Write the messages for the tiny model: training, validation and test rows, which share no template."""
    folder = output / "messages"
    folder.mkdir()
    files = write_splits(folder, random_generator(seed, MESSAGES))
    return Personal(
        files=files,
        question=first_row(files["test"]),
        wording=("--template", TINY_TEMPLATE, "--label-words", TINY_LABEL_WORDS),
        schedule=("--steps", str(steps or TINY_STEPS)),
    )


def own_rows(path: Path, output: Path, seed: int, steps: int | None) -> Personal:
    """Split the user's rows 60 : 15 : 25 into training, validation and test rows.

    Raises:
        DataError: There is no such file, or it has too few rows.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", next_step="name a file of rows: DATA=FILE") from error
    if len(lines) < LEAST_ROWS:
        raise DataError(f"{path} has {len(lines)} rows", needed=f"{LEAST_ROWS}, to split them", next_step="add rows")
    shuffled = [lines[index] for index in random_generator(seed, MESSAGES).permutation(len(lines))]
    first, second = len(lines) * 60 // 100, len(lines) * 75 // 100
    parts = dict(zip(SPLITS, (shuffled[:first], shuffled[first:second], shuffled[second:]), strict=True))
    folder = output / "messages"
    folder.mkdir()
    for split, rows in parts.items():
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Personal(
        files={split: folder / f"{split}.jsonl" for split in parts},
        question=None,
        wording=(),
        schedule=("--steps", str(steps or REAL_STEPS), *REAL_SCHEDULE),
    )


def first_row(path: Path) -> dict[str, str]:
    """Return the first row of a JSONL file."""
    row: dict[str, str] = json.loads(path.read_text(encoding="utf-8").partition("\n")[0])
    return row
