"""The 32 classes of the emoji pictures, from the categories and names of ``emoji.json``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["CLASSES", "FLIP_OK", "Picture", "pictures"]

# Class: whether a mirrored picture is still of the class, and its subcategories in emoji.json.
_TABLE: dict[str, tuple[bool, tuple[str, ...]]] = {
    "smiley face": (True, (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical",
        "face-sleepy", "face-unwell", "face-hat", "face-glasses", "face-concerned",
    )),
    "animal face": (True, ("cat-face", "monkey-face")),
    "heart": (True, ("heart",)),
    "hand": (True, (
        "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed",
        "hands", "hand-prop",
    )),
    "person": (True, ("person", "person-gesture", "person-role", "person-fantasy")),
    "person in motion": (True, ("person-activity", "person-sport", "person-resting")),
    "mammal": (True, ("animal-mammal",)),
    "bird": (True, ("animal-bird",)),
    "bug": (True, ("animal-bug",)),
    "sea animal or reptile": (True, ("animal-marine", "animal-reptile", "animal-amphibian")),
    "plant": (True, ("plant-flower", "plant-other")),
    "fruit or vegetable": (True, ("food-fruit", "food-vegetable")),
    "meal": (True, ("food-prepared", "food-asian")),
    "sweet": (True, ("food-sweet",)),
    "drink": (True, ("drink", "dishware")),
    "building": (True, ("place-building", "place-religious", "place-other")),
    "land vehicle": (True, ("transport-ground",)),
    "air or water vehicle": (True, ("transport-air", "transport-water")),
    "clock": (False, ("time",)),
    "sky and weather": (True, ("sky & weather",)),
    "flag": (False, ("country-flag", "flag", "subdivision-flag")),
    "letter or number button": (False, ("alphanum", "keycap")),
    "arrow or media button": (False, ("arrow", "av-symbol")),
    "zodiac or religion sign": (False, ("zodiac", "religion")),
    "plain shape": (True, ("geometric",)),
    "warning sign": (False, ("warning", "transport-sign")),
    "sport or game": (True, ("sport", "game")),
    "clothing": (True, ("clothing",)),
    "paper and office": (False, ("book-paper", "office", "mail", "writing")),
    "electronics": (False, ("computer", "phone", "light & video")),
    "music": (False, ("musical-instrument", "music", "sound")),
    "tool": (True, ("tool", "science", "medical", "lock")),
}  # fmt: skip

# Animals whose picture is a face, whatever subcategory they are in.
_ANIMAL_FACES = {
    "bear", "boar", "cat", "chicken", "cow", "dog", "dragon_face", "fox_face", "frog",
    "giraffe_face", "hamster", "hatching_chick", "horse", "koala", "lion_face", "monkey_face",
    "moose", "mouse", "panda_face", "pig", "polar_bear", "rabbit", "raccoon", "tiger",
    "unicorn_face", "wolf", "zebra_face",
}  # fmt: skip
# In a subcategory above, but nothing like the rest of its class.
_LEFT_OUT = {"bed", "boom", "couch_and_lamp", "dash", "dizzy", "hole", "sweat_drops", "zzz"}
# Light, medium and dark: all five would make hands the bulk of the data.
_SKIN_TONES = ("1F3FB", "1F3FD", "1F3FF")

CLASSES = tuple(_TABLE)
FLIP_OK = tuple(mirrored for mirrored, _ in _TABLE.values())
_CLASS_OF = {
    subcategory: index
    for index, (_, subcategories) in enumerate(_TABLE.values())
    for subcategory in subcategories
}


class Picture(NamedTuple):
    """An emoji to use. emoji: its short name; name: with the skin tone; file: of the image."""

    emoji: str
    name: str
    file: str
    label: int


def _label(entry: dict[str, Any]) -> int | None:
    if entry["short_name"] in _LEFT_OUT:
        return None
    if entry["category"] == "Animals & Nature" and entry["short_name"] in _ANIMAL_FACES:
        return CLASSES.index("animal face")
    return _CLASS_OF.get(entry["subcategory"])


def pictures(entries: list[dict[str, Any]]) -> Iterator[Picture]:
    """The pictures to use among the ``entries`` of emoji.json, in its sort order."""
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        label = _label(entry)
        if label is None:
            continue
        emoji = entry["short_name"]
        yield Picture(emoji, emoji, entry["image"], label)
        if CLASSES[label] != "hand":
            continue
        variations = entry.get("skin_variations", {})
        for tone in _SKIN_TONES:
            if tone in variations:
                yield Picture(emoji, f"{emoji}-{tone}", variations[tone]["image"], label)
