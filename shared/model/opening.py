"""What a device requires of a bundle before it computes, beyond whole and consistent files.

    configuration   the allow-listed keys make a network of a served family
    tensors         the network has exactly the bundle's parameters, in their shapes
    tokenizer       it can be read, and every id that it gives has a row in the embedding
    template        conversations with and without a system message can be rendered

Whoever makes a bundle applies the same rules before signing it, so no device has to refuse what was signed. Costs a
network without memory and, where there is a template, one process for a second. Reads no file.
"""

from __future__ import annotations

from torch import nn

from shared.bundle.config import BundleConfig
from shared.errors import DataError, TensorMismatch, UnsupportedModel
from shared.model.skeleton import build_skeleton
from shared.model.tokenizer import BundleTokenizer

_SYSTEM = {"role": "system", "content": "Answer in one word."}
QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris"}


def check_opening(config: BundleConfig, tokenizer_json: str) -> None:
    """Refuse what a device could not open.

    Args:
        config: The bundle's configuration.
        tokenizer_json: The bundle's tokenizer.

    Raises:
        UnsupportedModel: The architecture, the tokenizer or the chat template cannot be used.
        TensorMismatch: The tensors are not those of the architecture, or a token has no row in the embedding.
    """
    tokenizer = BundleTokenizer(tokenizer_json, config.tokenizer)
    check_vocabulary(tokenizer, build_skeleton(config))
    check_conversations(tokenizer)


def check_vocabulary(tokenizer: BundleTokenizer, network: nn.Module) -> None:
    """Refuse ids that have no row in the network's embedding.

    Raises:
        TensorMismatch: There is such an id.
    """
    size = network.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if tokenizer.largest_id >= size:
        raise TensorMismatch(f"tokenizer.json has token {tokenizer.largest_id}", needed=f"ids below {size}")
    if beyond := [token for token in [*tokenizer.bos_ids, *tokenizer.eos_ids] if token >= size]:
        raise TensorMismatch(f"texts begin or end with token {beyond[0]}", needed=f"ids below {size}")


def check_conversations(tokenizer: BundleTokenizer) -> None:
    """Refuse a chat template that does not render a question with its answer; it may refuse a system message.

    Raises:
        UnsupportedModel: It fails, refuses or writes nothing.
    """
    try:
        asked = tokenizer.apply_chat_template([QUESTION])
        answered = tokenizer.apply_chat_template([QUESTION, ANSWER], add_generation_prompt=False)
    except DataError as error:
        raise _unusable(f"it refuses a question and its answer: {error.found}") from error
    if not asked.strip() or not answered.strip():
        raise _unusable("it writes nothing for a question and its answer")
    try:
        tokenizer.apply_chat_template([_SYSTEM, QUESTION])
    except DataError:  # some families have no system message, and say so
        return


def _unusable(fault: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the chat template cannot be used: {fault}",
        needed="a template that renders messages of the roles user and assistant",
        next_step="use plain prompts instead of messages, or another bundle",
    )
