"""An exported folder that plain transformers loads: ``AutoModelForCausalLM.from_pretrained(FOLDER)``.

    config.json · generation_config.json · tokenizer.json · tokenizer_config.json · chat_template.jinja
    model.safetensors          the decoded weights, with the run's values in their places, rounded once
    README.md                  the model card

float16 loses least of 16 bits: codebooks and dense parameters are float16 to begin with, and it has three bits more
than bfloat16. In float32 nothing is lost. Costs a few megabytes of memory, and two or four bytes of disk for a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_client.export.documents import folder_documents
from device_client.export.model_card import model_card
from device_client.export.subject import Subject
from device_client.export.weight_files import checkpoint_bytes, write_weight_files
from device_client.export.weights import DecodedWeights
from shared.architecture import family_of

_SMALL_FILES_BYTES = 64 * 1024


class HuggingFaceFolder:
    """One export, ready to be written.

    Args:
        subject: What is exported.
        dtype_name: ``float16``, ``bfloat16`` or ``float32``.

    Raises:
        UnsupportedModel: What the run tuned cannot be written as weights.
    """

    def __init__(self, subject: Subject, dtype_name: str) -> None:
        self._subject, self._dtype_name = subject, dtype_name
        self._weights = DecodedWeights(subject)
        self._documents = folder_documents(subject.bundle, dtype_name)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return checkpoint_bytes(self._weights, self._dtype_name)

    @property
    def size_bytes(self) -> int:
        """About what the folder takes on the disk."""
        return self.weight_bytes + sum(map(len, self._documents.values())) + _SMALL_FILES_BYTES

    def write(self, folder: Path, advance: Callable[[float], None]) -> None:
        """Write all files into an empty folder.

        Args:
            folder: Where to.
            advance: Receives the bytes of weights that each piece has added.

        Raises:
            UnsupportedModel: A weight is not finite in the chosen format.
        """
        config = self._subject.bundle.config
        family = family_of(config.architecture, allow_untested=True)
        for name, content in self._documents.items():
            (folder / name).write_bytes(content)
        card = model_card(self._subject, f"Decoded weights ({self._dtype_name}) for transformers")
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_weight_files(folder, self._weights, config, family, self._dtype_name, advance)
