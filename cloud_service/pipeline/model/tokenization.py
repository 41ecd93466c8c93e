"""The tokenizer as devices will use it: tokenizer.json with no special token added, and one rule about BOS.

    tokens(text) = [bos] · prepend_bos + encode(text, add_special_tokens=False)

``prepend_bos`` holds where the checkpoint's own tokenizer puts BOS before a text (see ``special_tokens``). Cloud and
device tokenise by this one rule, so that calibration, perplexity and tuning see the same tokens. What a device would
refuse is refused here, before any work: a token without a row in the embedding, a chat template that does not render.
Knows nothing about models' weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.chat_template_files import read_chat_template
from cloud_service.pipeline.model.embedded_tokens import check_has_row, without_rowless_tokens
from cloud_service.pipeline.model.special_tokens import (
    beginning,
    endings,
    ids_of,
    token_id,
    turn_ending,
    well_known_ending,
)
from cloud_service.pipeline.model.tokenizer_files import (
    optional_json,
    read_tokenizer,
    tokenizer_errors,
    tokenizer_settings,
)
from shared.bundle.config import TokenizerSettings
from shared.errors import UnsupportedModel
from shared.model.opening import check_conversations
from shared.model.tokenizer import BundleTokenizer


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """Turns text into token ids.

    Attributes:
        tokenizer: The tokenizer that is published, without truncation and padding.
        settings: What else a client must know.
        left_out: Tokens of the checkpoint that its model has no row for: they are ordinary text here.
    """

    tokenizer: Tokenizer
    settings: TokenizerSettings
    left_out: tuple[str, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of ``text`` without any special token.

        Raises:
            UnsupportedModel: The tokenizer fails.
        """
        with tokenizer_errors("the tokenizer fails at a text"):
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def bos(self) -> list[int]:
        """What every text starts with: [bos_token_id] or nothing."""
        token = self.settings.bos_token_id
        return [token] if self.settings.prepend_bos and token is not None else []

    @property
    def notes(self) -> list[str]:
        """What the model's makers may not expect, in sentences."""
        notes = []
        if self.left_out:
            notes.append(f"left out of the tokenizer, for the model has no row for them: {', '.join(self.left_out)}")
        if not self.settings.eos_token_ids:
            notes.append("nothing in the model's files says which token ends a text: answers end at their length only")
        return notes

    def to_json(self) -> bytes:
        """Return the tokenizer.json to publish."""
        return str(self.tokenizer.to_str()).encode()


def load_encoder(folder: Path, architecture: dict[str, Any], context_length: int) -> TextEncoder:
    """Return the encoder of the checkpoint in ``folder``.

    Raises:
        UnsupportedModel: There is no tokenizer that can be read without running code, it would take memory or time out
            of proportion, a token that is needed has no row in the embedding, or the chat template does not render.
    """
    files = ContainedFolder(folder)
    vocabulary: int | None = architecture.get("vocab_size")
    settings = tokenizer_settings(files)
    generation = optional_json(files, "generation_config.json")
    template = read_chat_template(files, settings)
    tokenizer = read_tokenizer(files, architecture, settings)
    with tokenizer_errors("the tokenizer fails at a text"):
        prepends, bos = beginning(tokenizer, settings, architecture)
    ends = endings(tokenizer, settings, architecture, generation)
    pads = [token_id(tokenizer, settings.get("pad_token")), *ids_of({**architecture, **generation}.get("pad_token_id"))]
    left_out: tuple[str, ...] = ()
    if vocabulary is not None:
        check_has_row([bos, *ends], vocabulary)
        pads = [pad for pad in pads if pad is None or pad < vocabulary]
        tokenizer, left_out = without_rowless_tokens(tokenizer, vocabulary, template)
    stated = TokenizerSettings(
        prepend_bos=prepends,
        bos_token_id=bos,
        eos_token_ids=ends,
        pad_token_id=next((pad for pad in pads if pad is not None), None),
        context_length=context_length,
        chat_template=template,
    )
    return TextEncoder(tokenizer, _with_conversations_end(tokenizer, stated), left_out)


def _with_conversations_end(tokenizer: Tokenizer, stated: TokenizerSettings) -> TokenizerSettings:
    """Return the settings with what the chat template ends a turn with, once it is known to render."""
    on_device = BundleTokenizer(tokenizer.to_str(), stated)
    try:
        check_conversations(on_device)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            error.found,
            needed=error.needed,
            next_step="correct chat_template in the model folder, or remove it: conversations then become plain lines",
            param="model",
        ) from error
    ends = [*stated.eos_token_ids, turn_ending(on_device)]
    if not any(end is not None for end in ends):
        ends = [well_known_ending(tokenizer)]
    return stated.model_copy(update={"eos_token_ids": list(dict.fromkeys(end for end in ends if end is not None))})
