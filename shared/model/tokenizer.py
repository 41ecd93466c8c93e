"""Text to token ids and back, by the bundle's own tokenizer.json.

tokenizer.json adds no special token here; the bundle's settings say whether a text starts with the beginning-of-text
token, and callers put it there by ``bos_ids + encode(text)``. Chat templates come from a foreign model and are
programs, so they render in a sandboxed process with limits (``chat_template``). A control token that a person spells
stays text where ``as_text`` marked it (``control_text``). Knows nothing about the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from shared.bundle.config import TokenizerSettings
from shared.bundle.manifest import TOKENIZER_TITLE
from shared.bundle.read import Bundle
from shared.errors import UnsupportedModel
from shared.model.chat_template import ChatTemplate
from shared.model.control_text import MARK, ControlText

Message = Mapping[str, Any]


class BundleTokenizer:
    """The tokenizer of one bundle.

    Args:
        tokenizer_json: The content of tokenizer.json.
        settings: What the bundle's configuration says besides.

    Raises:
        UnsupportedModel: ``tokenizer_json`` is not understood by the tokenizers library.
    """

    def __init__(self, tokenizer_json: str, settings: TokenizerSettings) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises nothing narrower
            raise UnsupportedModel(
                f"tokenizer.json: {error}",
                needed="a tokenizer that the installed tokenizers library reads",
                next_step="pip install --upgrade tokenizers, or pull another bundle",
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.settings = settings
        named = (settings.bos_token_id, settings.pad_token_id, *settings.eos_token_ids)
        self._control_text = ControlText(tokenizer_json, (token for token in named if token is not None))
        self._chat_template = None if settings.chat_template is None else ChatTemplate(settings.chat_template)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> BundleTokenizer:
        """Return the tokenizer of a validated bundle."""
        return cls(bundle.path(TOKENIZER_TITLE).read_text(encoding="utf-8"), bundle.config.tokenizer)

    def expect_conversation(self) -> None:
        """Start what renders conversations, which takes half a second, while the caller does something else."""
        if self._chat_template is not None:
            self._chat_template.start()

    @property
    def bos_ids(self) -> list[int]:
        """What every text starts with: the beginning-of-text token, or nothing."""
        bos = self.settings.bos_token_id
        return [bos] if self.settings.prepend_bos and bos is not None else []

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end a text or a turn; the first is the one that ends what is learnt."""
        return list(self.settings.eos_token_ids)

    @property
    def pad_id(self) -> int:
        """The token that fills rows up; which one it is never changes a logit."""
        if self.settings.pad_token_id is not None:
            return self.settings.pad_token_id
        return self.settings.eos_token_ids[0] if self.settings.eos_token_ids else 0

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.settings.context_length

    @property
    def largest_id(self) -> int:
        """The largest id that ``encode`` can produce."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def is_added(self, token: int) -> bool:
        """Whether a token stands beside the vocabulary, as special tokens do."""
        return token in self._tokenizer.get_added_tokens_decoder()

    def as_text(self, text: str) -> str:
        """Return a person's text so marked that ``encode`` gives no control token for what it spells."""
        return self._control_text.as_text(text)

    def text_of(self, token: int) -> str | None:
        """Return how a token is written, or None where there is no such token."""
        text: str | None = self._tokenizer.id_to_token(token)
        return text

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` alone; control tokens are recognised, but for those that ``as_text`` marked.

        Raises:
            DataError: The tokenizer has no other token for a marked spelling.
        """
        if MARK in text:
            return self._control_text.encode(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, with_control_tokens: bool = False) -> str:
        """Return the text of ``ids``; special tokens are left out unless they are asked for."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not with_control_tokens))

    def decode_stream(self, ids: Iterable[int]) -> Iterable[str]:
        """Yield the text of ``ids`` piece by piece, each as soon as its characters are complete."""
        stream = self.text_stream()
        for token in ids:
            if piece := stream.push(token):
                yield piece

    def text_stream(self) -> TextStream:
        """Return what makes text of tokens that come one by one."""
        return TextStream(self._tokenizer)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text to continue; the beginning-of-text token comes once, whoever wrote it."""
        ids = self.encode(text)
        return ids if ids[: len(self.bos_ids)] == self.bos_ids else self.bos_ids + ids

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Return the ids of a conversation; starts with the beginning-of-text token once, whoever wrote it."""
        return self.encode_prompt(self.apply_chat_template(messages, add_generation_prompt=add_generation_prompt))

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return a conversation as the text the model was trained on.

        Without a template in the bundle each message becomes one line, ``Role: content``, and the answer is asked
        for by ``Assistant:``.

        Args:
            messages: ``{"role": …, "content": …}`` in order, with whatever else the template reads.
            add_generation_prompt: Whether the text ends where the assistant's answer begins.
            tools: JSON schemas of functions that the model may call.

        Raises:
            UnsupportedModel: The template cannot be rendered, does what the sandbox forbids, or exceeds a limit.
            DataError: The template refuses these messages.
        """
        if self._chat_template is None:
            lines = [f"{message['role'].capitalize()}: {message['content']}\n" for message in messages]
            return "".join(lines) + ("Assistant:" if add_generation_prompt else "")
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "add_generation_prompt": add_generation_prompt,
        }
        return self._chat_template.render(variables | self._special_tokens())

    def _special_tokens(self) -> dict[str, str]:
        """Return the special tokens that a template may write, by the names that transformers gives them."""
        ids = {
            "bos_token": self.settings.bos_token_id,
            "eos_token": next(iter(self.settings.eos_token_ids), None),
            "pad_token": self.settings.pad_token_id,
        }
        texts = {name: self._tokenizer.id_to_token(token) for name, token in ids.items() if token is not None}
        return {name: text for name, text in texts.items() if text is not None}


class TextStream:
    """Text of tokens that come one by one; special tokens are left out.

    Args:
        tokenizer: Decodes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._length = 0

    def push(self, token: int) -> str:
        """Return the characters that are complete with this token, possibly none."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._length += len(piece)
        return piece

    def finish(self) -> str:
        """Return what the tokens hold beyond the complete characters: the text has ended."""
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole[self._length :]
