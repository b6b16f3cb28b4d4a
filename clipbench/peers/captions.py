"""Sentences as long as COCO's captions, made from lists of words: distinct, seeded, nobody's text.

Source of the lengths: COCO captions have 10.5 words on average, and CLIP's tokenizer gives a common word one token.
"""

from collections.abc import Sequence

import numpy as np


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


PEOPLE = _listed("man,woman,boy,girl,child,person,player,worker,couple,crowd,family,skier,surfer,chef,farmer,tourist")
ANIMALS = _listed("dog,cat,horse,sheep,cow,elephant,bear,zebra,giraffe,bird,duck,puppy,kitten")
THINGS = _listed(
    "bench,table,chair,couch,bed,bowl,plate,cup,bottle,book,laptop,phone,clock,vase,kite,ball,bat,skateboard,surfboard,"
    "umbrella,bag,suitcase,sandwich,pizza,cake,apple,orange,banana,boat,train,bus,truck,car,bicycle,motorcycle"
)
PLACES = _listed(
    "street,park,beach,kitchen,field,river,bridge,station,garden,road,market,fence,window,lake,hill,forest,harbor,"
    "parking lot,living room,tennis court,baseball field,train platform,city sidewalk,grassy hillside,snowy mountain"
)
LOOKS = _listed(
    "small,large,young,old,white,black,brown,red,blue,green,yellow,wooden,metal,colorful,bright,dark,empty,tall,busy,"
    "quiet,shiny,wet,dirty,round,narrow"
)
ACTS = _listed(
    "sitting on,standing next to,walking past,looking at,leaning against,playing with,waiting beside,resting under,"
    "jumping over,moving toward,posing with,carrying,watching,holding,pulling"
)
WHERES = _listed("in,near,by,across,behind,beside,outside,along")
ENDINGS = _listed(
    "on a sunny day,in the background,under a cloudy sky,with {a} and {another},while {someone} is {doing} {a},"
    "while several other people are {doing} {a} and {another} {where} the {place}"
)
_ENDING_ODDS = (0.2, 0.2, 0.2, 0.2, 0.15, 0.05)
_PLACE_SHARE, _LOOK_SHARE, _ENDING_SHARE, _STOP_SHARE = 0.8, 0.4, 0.2, 0.3
FEWEST_WORDS, MOST_WORDS = 6, 27


def captions(n: int, seed: int = 0) -> list[str]:
    """Return n distinct English sentences: 10.5 words and 12 to 13 CLIP tokens on average, 8 to 30 tokens each.

    The first n of a seed are the same whatever n is.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        sentence = _sentence(generator)
        if FEWEST_WORDS <= len(sentence.split()) <= MOST_WORDS:
            found.setdefault(sentence)
    return list(found)


def _sentence(generator: np.random.Generator) -> str:
    parts = [_thing(generator, PEOPLE + ANIMALS), _one(generator, ACTS), _thing(generator, THINGS + ANIMALS)]
    if generator.random() < _PLACE_SHARE:
        parts += [_one(generator, WHERES), "the", _one(generator, PLACES)]
    if generator.random() < _ENDING_SHARE:
        blanks = {"doing": _one(generator, ACTS), "where": _one(generator, WHERES), "place": _one(generator, PLACES)}
        blanks |= {"a": _thing(generator, THINGS), "another": _thing(generator, THINGS)}
        ending = ENDINGS[int(generator.choice(len(ENDINGS), p=_ENDING_ODDS))]
        parts.append(ending.format(someone=_thing(generator, PEOPLE), **blanks))
    text = " ".join(parts)
    return text[0].upper() + text[1:] + ("." if generator.random() < _STOP_SHARE else "")


def _thing(generator: np.random.Generator, names: Sequence[str]) -> str:
    look = f"{_one(generator, LOOKS)} " if generator.random() < _LOOK_SHARE else ""
    words = look + _one(generator, names)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _one(generator: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(generator.integers(len(words)))]
