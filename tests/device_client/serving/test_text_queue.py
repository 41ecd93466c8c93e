"""The queue of texts: who is written beside whom, who waits, who is refused, and who survives whose failure.

The reader is written by hand: it remembers every pass and always finds the next letter likeliest, so a text that
continues ``a`` is ``bcd…``. Passes happen in the test's own thread, one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_bundle import byte_tokenizer_json
from torch import Tensor

from device_client.serving.text_queue import (
    MOST_TEXTS,
    MOST_WAITING,
    PROMPT_PART_TOKENS,
    TURNS_OF_A_MODEL,
    Event,
    QueueFull,
    Request,
    TextQueue,
    Written,
)
from device_client.texts.continuation import Sampling
from shared.bundle.config import TokenizerSettings
from shared.errors import ResourceError, ZoError
from shared.model.tokenizer import BundleTokenizer

BYTES_PER_TOKEN = 2  # with room: 3


class RememberedText:
    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def cut(self, tokens: int) -> None:
        del self.ids[tokens:]

    def copy(self) -> RememberedText:
        return RememberedText(self.ids)


class AlphabetReader:
    """Finds the token after a text's last one likeliest, and remembers how many tokens each pass had of each text."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, list[int]]] = []
        self.reads_in_parts = True
        self.fault: Exception | None = None
        self.model = ""
        self.after_pass: Callable[[int], None] = lambda _: None

    def begin(self) -> RememberedText:
        return RememberedText()

    def read(self, texts: Sequence[RememberedText], new_ids: Sequence[Sequence[int]]) -> Tensor:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.passes.append((self.model, [len(ids) for ids in new_ids]))
        for text, ids in zip(texts, new_ids, strict=True):
            text.ids += ids
        logits = torch.zeros(len(texts), 259)
        for row, text in enumerate(texts):
            logits[row, text.ids[-1] + 1] = 9.0
        self.after_pass(len(self.passes))
        return logits


class Names:
    """Models by name, without values; swapping tells the reader."""

    def __init__(self, reader: AlphabetReader) -> None:
        self._reader = reader
        self.all = [type("Named", (), {"name": name}) for name in ("one", "two", "three")]

    def swap_in(self, name: str) -> None:
        self._reader.model = name


class Heard:
    """What a request hears."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def text(self, index: int = 0) -> str:
        return "".join(e.piece.text for e in self.events if isinstance(e, Written) and e.index == index)

    @property
    def is_done(self) -> bool:
        last = self.events[-1] if self.events else None
        return isinstance(last, ZoError) or (isinstance(last, Written) and last.piece.finish_reason is not None)


@pytest.fixture
def reader() -> AlphabetReader:
    return AlphabetReader()


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    settings = TokenizerSettings(
        prepend_bos=True, bos_token_id=256, eos_token_ids=[257], pad_token_id=258, context_length=4096
    )
    return BundleTokenizer(byte_tokenizer_json(), settings)


def queue_of(reader: AlphabetReader, tokenizer: BundleTokenizer, memory_bytes: int = 10**6) -> TextQueue:
    return TextQueue(reader, Names(reader), tokenizer, BYTES_PER_TOKEN, memory_bytes)  # type: ignore[arg-type]


def asked(
    tokenizer: BundleTokenizer, prompt: str = "a", model: str = "one", tokens: int = 3, texts: int = 1
) -> tuple[Request, Heard]:
    heard = Heard()
    samplings = [Sampling(max_new_tokens=tokens, seed=seed) for seed in range(texts)]
    return Request(model, tokenizer.encode(prompt), samplings, heard), heard


def served(queue: TextQueue, reader: AlphabetReader, *asked: tuple[Request, Heard]) -> None:
    """Submit requests, and serve until all of them have ended."""
    for request, _ in asked:
        queue.submit(request)
    reader.after_pass = lambda count: queue.close() if count > 500 else None
    serving = threading.Thread(target=queue.serve)
    whole = threading.Event()
    for request, heard in asked:
        request.hear = lambda event, heard=heard: (  # type: ignore[misc]
            heard(event),
            whole.set() if all(each.is_done for _, each in asked) else None,
        )
    serving.start()
    assert whole.wait(20)
    queue.close()
    serving.join()


def test_texts_of_one_model_are_written_in_the_same_passes(reader: AlphabetReader, tokenizer: BundleTokenizer) -> None:
    first, second = asked(tokenizer, "a"), asked(tokenizer, "x")

    served(queue_of(reader, tokenizer), reader, first, second)

    assert (first[1].text(), second[1].text()) == ("bcd", "yz{")
    assert [sizes for _, sizes in reader.passes] == [[1], [1, 1], [1, 1], [1]]


def test_a_long_prompt_is_read_in_parts_beside_a_text_that_is_being_written(
    reader: AlphabetReader, tokenizer: BundleTokenizer
) -> None:
    short, long = asked(tokenizer, "a", tokens=5), asked(tokenizer, "b" * (2 * PROMPT_PART_TOKENS + 1), tokens=1)

    served(queue_of(reader, tokenizer), reader, short, long)

    parts = [sizes for _, sizes in reader.passes]
    assert parts[:4] == [[1], [1, PROMPT_PART_TOKENS], [1, PROMPT_PART_TOKENS], [1, 1]]
    assert (short[1].text(), long[1].text()) == ("bcdef", "c")


def test_a_prompt_is_read_once_for_all_its_texts(reader: AlphabetReader, tokenizer: BundleTokenizer) -> None:
    request = asked(tokenizer, "a", tokens=2, texts=3)

    served(queue_of(reader, tokenizer), reader, request)

    assert [request[1].text(index) for index in range(3)] == ["bc"] * 3
    assert [sizes for _, sizes in reader.passes] == [[1], [1, 1, 1]]


def test_models_take_turns_and_none_waits_for_a_text_to_end(reader: AlphabetReader, tokenizer: BundleTokenizer) -> None:
    long, short = asked(tokenizer, "a", "one", tokens=80), asked(tokenizer, "a", "three", tokens=3)

    served(queue_of(reader, tokenizer), reader, long, short)

    models = [model for model, _ in reader.passes]
    assert models.index("three") == TURNS_OF_A_MODEL + 1
    assert models[models.index("three") :][:3] == ["three"] * 3
    assert len(long[1].events) == 80


def test_requests_wait_while_memory_is_taken_and_begin_in_their_order(
    reader: AlphabetReader, tokenizer: BundleTokenizer
) -> None:
    # 4 tokens at their longest take 12 bytes; two requests fit, and the third begins when one of them has ended.
    requests = [asked(tokenizer, letter, tokens=3) for letter in "ace"]

    served(queue_of(reader, tokenizer, memory_bytes=24), reader, *requests)

    assert [heard.text() for _, heard in requests] == ["bcd", "def", "fgh"]
    assert max(len(sizes) for _, sizes in reader.passes) == 2


def test_what_would_never_fit_is_refused_before_it_waits(reader: AlphabetReader, tokenizer: BundleTokenizer) -> None:
    queue = queue_of(reader, tokenizer, memory_bytes=11)

    with pytest.raises(ResourceError, match="1 texts of up to 4 tokens"):
        queue.submit(asked(tokenizer, "a", tokens=3)[0])
    with pytest.raises(ResourceError, match=f"at most {MOST_TEXTS} texts"):
        queue_of(reader, tokenizer).submit(asked(tokenizer, texts=MOST_TEXTS + 1)[0])


def test_a_queue_that_is_full_refuses_the_next_request(reader: AlphabetReader, tokenizer: BundleTokenizer) -> None:
    queue = queue_of(reader, tokenizer)
    for _ in range(MOST_WAITING):
        queue.submit(asked(tokenizer)[0])

    with pytest.raises(QueueFull, match=f"{MOST_WAITING} requests wait"):
        queue.submit(asked(tokenizer)[0])


def test_a_pass_that_fails_takes_its_own_requests_and_no_other(
    reader: AlphabetReader, tokenizer: BundleTokenizer
) -> None:
    failing, later = asked(tokenizer, "a", "one"), asked(tokenizer, "a", "two")
    reader.fault = RuntimeError("DefaultCPUAllocator: can't allocate memory")

    served(queue_of(reader, tokenizer), reader, failing, later)

    (event,) = failing[1].events
    assert isinstance(event, ResourceError)
    assert later[1].text() == "bcd"


def test_an_error_that_nobody_expected_does_not_quote_its_text(
    reader: AlphabetReader, tokenizer: BundleTokenizer
) -> None:
    failing = asked(tokenizer)
    reader.fault = ValueError("a person's secret")

    served(queue_of(reader, tokenizer), reader, failing)

    assert "secret" not in str(failing[1].events[0])
    assert "ValueError" in str(failing[1].events[0])


def test_a_cancelled_request_hears_nothing_more_and_frees_its_memory(
    reader: AlphabetReader, tokenizer: BundleTokenizer
) -> None:
    queue = queue_of(reader, tokenizer, memory_bytes=12)
    cancelled, next_one = asked(tokenizer, "a", tokens=3), asked(tokenizer, "c", tokens=3)
    queue.submit(cancelled[0])
    queue.cancel(cancelled[0])

    served(queue, reader, next_one)

    assert cancelled[1].events == []
    assert next_one[1].text() == "def"
