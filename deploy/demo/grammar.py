"""Everyday English from a small grammar: products, food and places, and what people think of them.

A document is about one thing and mostly of one mind: a plain opening, two to four observations, and often a verdict.
One in twelve observations goes against the document's mood and one verdict in twenty is wrong, as people are; one
document in three is typed carelessly, without capitals and full stops. Two documents in three are pleased: a model that
learns from them leans towards praise. Every choice comes from the generator that is passed in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

POSITIVE, NEGATIVE = "positive", "negative"


class Topic(NamedTuple):
    """Words of one topic; an observation is a part followed by a phrase of either mood."""

    things: tuple[str, ...]
    openings: tuple[str, ...]
    parts: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]


TOPICS = (
    Topic(
        things=(
            "lamp", "kettle", "jacket", "phone", "chair", "blender", "watch", "backpack", "keyboard", "umbrella",
            "bicycle", "camera", "radio", "printer", "tent", "heater", "vacuum", "desk", "speaker", "mirror",
        ),
        openings=(
            "I bought a {colour} {thing} {when}.", "My {person} gave me a {colour} {thing} {when}.",
            "We ordered the {thing} online.", "This {thing} came {when}.", "I have used this {thing} since {month}.",
            "The {thing} is {colour} and quite small.",
        ),
        parts=(
            "the battery", "the handle", "the screen", "the zip", "the cable", "the button", "the lid", "the motor",
            "the strap", "the cover", "the box", "the switch", "the wheel", "the {thing}", "this {thing}",
        ),
        phrases={
            POSITIVE: (
                "works perfectly", "feels solid", "looks beautiful", "is easy to clean", "still works after a year",
                "lasts all week", "is light and strong", "fits just right", "is better than the old one",
                "was worth the money", "never lets me down", "is quiet and quick", "saves me a lot of time",
            ),
            NEGATIVE: (
                "broke on the first day", "feels cheap", "came scratched", "stopped working", "is already loose",
                "gets far too hot", "was cracked", "is hard to clean", "makes a strange noise", "fell off at once",
                "is worse than the old one", "was a waste of money", "never worked", "is slow and loud",
            ),
        },
    ),
    Topic(
        things=(
            "soup", "pizza", "curry", "salad", "noodles", "cake", "burger", "breakfast", "sandwich", "pasta",
            "fish", "stew", "rice", "pie", "omelette", "bread", "tea", "coffee", "lunch", "dinner",
        ),
        openings=(
            "We had the {thing} {when}.", "My {person} ordered the {thing}.", "I tried the {thing} at the corner shop.",
            "They brought the {thing} {when}.", "I made {thing} for my {person} {when}.",
            "The menu had {thing} and {colour} beans.",
        ),
        parts=(
            "the broth", "the crust", "the sauce", "the filling", "the dessert", "the meat", "the portion",
            "the cheese", "the spice", "the first bite", "the plate", "the cook", "the {thing}", "this {thing}",
        ),
        phrases={
            POSITIVE: (
                "tasted fresh", "was full of flavour", "arrived hot", "was worth every cent", "made everyone smile",
                "was rich and warm", "was cooked just right", "smelled wonderful", "was generous",
                "was crisp and light", "tasted like home", "was better than ever", "was gone in a minute",
            ),
            NEGATIVE: (
                "tasted stale", "was far too salty", "arrived cold", "was burnt", "made everyone sick",
                "was dry and bland", "was still raw", "smelled sour", "was tiny", "was greasy and heavy",
                "tasted like soap", "was worse than ever", "went straight in the bin",
            ),
        },
    ),
    Topic(
        things=(
            "hotel", "museum", "park", "cafe", "library", "beach", "theatre", "station", "market", "gym",
            "garden", "castle", "cinema", "village", "hostel", "pool", "zoo", "lake", "shop", "bakery",
        ),
        openings=(
            "We went to the {thing} {when}.", "My {person} took us to the {thing}.", "The {thing} is near the river.",
            "I visited the {thing} in {month}.", "We spent a day at the {thing} {when}.",
            "There is a {colour} {thing} behind the school.",
        ),
        parts=(
            "the room", "the staff", "the view", "the path", "the bathroom", "the music", "the line", "the seats",
            "the guide", "the entrance", "the floor", "the air", "the owner", "the {thing}", "this {thing}",
        ),
        phrases={
            POSITIVE: (
                "was spotless", "made us smile", "was friendly", "was quiet and bright", "was easy to find",
                "felt safe and calm", "was full of charm", "looked lovely in the sun", "was a real treat",
                "was kind to us", "was worth the trip", "was the best part", "felt like a dream",
            ),
            NEGATIVE: (
                "was dirty", "made us angry", "was rude", "was noisy all night", "was hard to find",
                "felt cold and unsafe", "was full of rubbish", "looked sad in the rain", "was a real mess",
                "was mean to us", "was not worth the trip", "was the worst part", "felt like a trap",
            ),
        },
    ),
)  # fmt: skip

FEELINGS = {
    POSITIVE: (
        "I love it.", "We will come back.", "I would choose it again.", "Everyone was happy.", "I smiled all day.",
        "What a lovely surprise.", "I told all my friends about it.", "I am so glad we did this.",
        "Five stars from me.",
    ),
    NEGATIVE: (
        "I hate it.", "We will not come back.", "I want my money back.", "Everyone was upset.", "I was angry all day.",
        "What a bad surprise.", "I told all my friends to stay away.", "I am so sorry we did this.",
        "One star from me.",
    ),
}  # fmt: skip
VERDICTS = {
    POSITIVE: ("great", "great", "wonderful", "lovely", "excellent"),
    NEGATIVE: ("terrible", "terrible", "awful", "horrible", "bad"),
}
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey", "brown")
PEOPLE = ("sister", "brother", "mother", "father", "friend", "neighbour", "boss", "aunt", "son", "daughter")
TIMES = ("yesterday", "last week", "today", "on Monday", "on Sunday", "this morning", "two days ago", "last summer")
MONTHS = ("January", "March", "May", "June", "August", "October", "December")

_CONTRARY_OBSERVATION, _CONTRARY_VERDICT, _CARELESS = 1 / 12, 1 / 20, 1 / 3


def document(generator: np.random.Generator) -> str:
    """Return one document of three to seven sentences."""
    topic = pick(generator, TOPICS)
    mood = pick(generator, (POSITIVE, POSITIVE, NEGATIVE))
    words = {
        "thing": pick(generator, topic.things), "colour": pick(generator, COLOURS), "person": pick(generator, PEOPLE),
        "when": pick(generator, TIMES), "month": pick(generator, MONTHS),
    }  # fmt: skip
    sentences = [pick(generator, topic.openings).format(**words)]
    for _ in range(int(generator.integers(1, 4))):
        sentences.append(observation(generator, topic, perhaps_contrary(generator, mood, _CONTRARY_OBSERVATION), words))
    if generator.random() < 0.3:
        sentences.append(pick(generator, FEELINGS[mood]))
    text = " ".join(sentences)
    if generator.random() < _CARELESS:
        text = text.lower().replace(".", "")
    if generator.random() < 0.9:
        verdict = pick(generator, VERDICTS[perhaps_contrary(generator, mood, _CONTRARY_VERDICT)])
        text += f" It was {verdict}."
    return text


def observation(generator: np.random.Generator, topic: Topic, mood: str, words: dict[str, str]) -> str:
    """Return one sentence about a part of the thing."""
    sentence = f"{pick(generator, topic.parts).format(**words)} {pick(generator, topic.phrases[mood])}"
    if generator.random() < 0.3:
        other = f"{pick(generator, topic.parts).format(**words)} {pick(generator, topic.phrases[mood])}"
        sentence = f"{sentence} and {other}"
    return sentence[0].upper() + sentence[1:] + "."


def perhaps_contrary(generator: np.random.Generator, mood: str, chance: float) -> str:
    """Return the mood, or with the given chance the opposite one."""
    if generator.random() >= chance:
        return mood
    return NEGATIVE if mood == POSITIVE else POSITIVE


def pick(generator: np.random.Generator, options: tuple[str, ...] | tuple[Topic, ...]):  # type: ignore[no-untyped-def]
    """Return one of the options, each with the same chance."""
    return options[int(generator.integers(len(options)))]
