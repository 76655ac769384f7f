"""A small closed language for retrieval: 512 words and one sentence template.

    statement   the A N V x1 x2 x3 x4 .
    one         recall the A N V                      -> x1 x2 x3 x4 .
    both        recall both the A N V                 -> x1 x2 x3 x4 and y1 y2 y3 y4 .
    two         recall the A2 N2 V2 and the A1 N1 V1
                                           -> x1 x2 x3 x4 . the A2 N2 V2 y1 y2 y3 y4 .
    repeat      repeat :                              -> the context, word for word

A is an adjective, N a noun, V a verb and x1 .. x4 are nouns. (A, N) is the key of a
statement, x1 .. x4 its value. Nothing marks a statement that will be asked about:
facts, distractors and filler read alike. A question begins like the statement it asks
about, so that answering it is continuing a text.

Text has local structure, so that a model can predict some of it without looking back: a
noun of the value is with probability 1/2 one of eight fixed successors of the noun
before it, else any noun.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)

FUNCTION_WORDS = ("the", ".", "and", "recall", "both", "repeat", ":")

ADJECTIVES = tuple(
    """
    amber ancient angry bitter black blue bold brave brief bright broad broken bronze
    brown calm careful cheap clean clever cloudy cold cool crimson cruel curious damp
    dark dear deep dry dull eager early empty fair faint famous fancy fast fierce final
    flat foreign fragile frail free fresh gentle giant golden grand gray great green
    happy hard harsh heavy hidden hollow honest huge humble hungry idle jolly keen kind
    large lazy little lonely long loud lucky mighty modest narrow neat noble pale plain
    proud purple quick quiet rapid rare red rich rough round royal rusty salty sharp
    """.split()
)

VERBS = tuple(
    """
    admires asks blesses borrows breaks brings builds buys calls carries catches chases
    chooses counts covers draws drops fears feeds finds follows gathers gives guards
    hates helps hides holds joins keeps knows leads lends likes lifts loses loves makes
    meets moves names needs offers opens owns paints pulls reads sends sells shows takes
    wants
    """.split()
)

NOUNS = tuple(
    """
    acorn actor adult alley altar anchor angel ankle apple apron arch arena arm army
    arrow artist atlas aunt author autumn axe baby badge bag baker ball balloon banana
    band bank banner barn baron barrel basin basket bath battle beach beacon bead beak
    bean bear beard beast beaver bed bee beetle bell belt bench berry bike bird biscuit
    blade blanket blossom board boat bone bonnet book boot bottle boulder bowl box boy
    bracelet branch brass bread brick bridge broom brother brush bucket bud bull button
    cabbage cabin cable cactus cake camel camera camp canal candle candy canoe canvas
    cape captain card cargo carpet carrot cart castle cat cave cellar chain chair chalk
    chapel cheese cherry chest chicken chief child chimney church cider circle city
    cliff clock cloth cloud clover clown club coach coal coast coat cobweb coffee coin
    collar comet compass cook copper coral cork corn corner cottage cotton couch cousin
    cow crab cradle crane crate creek crew cricket crow crowd crown cup curtain cushion
    dagger daisy dance dawn deer desert desk dew diamond dice dish doctor dog doll
    dolphin donkey door dove dragon drawer dream dress drum duck dust eagle ear earth
    easel echo egg elbow engine engineer envelope fabric falcon family farm farmer feast
    feather fence fern ferry fiddle field finger fire fish flag flame flask flea fleet
    flour flower flute fly foam fog folder foot forest fork fort fountain fox frame
    friend frog frost fruit funnel galaxy game garden garlic gate ghost giraffe girl
    glacier glass globe glove goat goose grain grape grass gravel guitar gull hammer
    hammock hand harbor hare harp hat hawk hazel heart hedge helmet hen herb hero hill
    hinge honey hood hook horn horse hotel house hunter hut ice idea ink insect iron
    island ivory ivy jacket jar jelly jewel judge juice jungle kettle key king kitchen
    kite kitten knee knife knight knot ladder lady lake lamb lamp lantern lawn lawyer
    leaf leather lemon letter lily lime lion lizard lock locust log lumber lunch magnet
    maid mango map maple marble market mask meadow medal melon merchant metal mill miner
    mirror monk monkey moon moth mountain mouse
    """.split()
)

VOCABULARY: tuple[str, ...] = SPECIALS + FUNCTION_WORDS + ADJECTIVES + VERBS + NOUNS

VALUE = 4
"""How many nouns a value has."""

SUCCESSORS: Int[np.ndarray, "nouns 8"] = (
    17 * np.arange(len(NOUNS))[:, None] + 41 * np.arange(8) + 5
) % len(NOUNS)
"""`SUCCESSORS[n]` are the indices of the eight nouns that are likely after noun n."""

CHAIN = 0.5
"""The probability that a noun of the value is a successor of the noun before it."""


@dataclass(frozen=True)
class Statement:
    """One sentence: its key (adjective, noun), its verb and the nouns of its value."""

    adjective: str
    noun: str
    verb: str
    values: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """(adjective, noun), what tells one fact from another."""
        return self.adjective, self.noun

    @property
    def opening(self) -> str:
        """The words before the value: "the A N V"."""
        return f"the {self.adjective} {self.noun} {self.verb}"

    @property
    def value(self) -> str:
        """The words to be recalled: "x1 x2 x3 x4"."""
        return " ".join(self.values)

    @property
    def text(self) -> str:
        """The whole sentence: "the A N V x1 x2 x3 x4 ."."""
        return f"{self.opening} {self.value} ."


def draw_statement(
    rng: np.random.Generator,
    adjective: str | None = None,
    noun: str | None = None,
    verb: str | None = None,
) -> Statement:
    """A random statement; the words that are given stay as they are."""
    adjective = adjective or _pick(rng, ADJECTIVES)
    noun = noun or _pick(rng, NOUNS)
    verb = verb or _pick(rng, VERBS)
    return Statement(adjective, noun, verb, draw_value(rng, noun))


def draw_value(rng: np.random.Generator, noun: str) -> tuple[str, ...]:
    """The four nouns that follow `noun`: each a successor of the last, or any noun."""
    last = NOUNS.index(noun)
    values = []
    for _ in range(VALUE):
        if rng.random() < CHAIN:
            last = int(rng.choice(SUCCESSORS[last]))
        else:
            last = int(rng.integers(len(NOUNS)))
        values.append(NOUNS[last])
    return tuple(values)


def recall(fact: Statement) -> tuple[str, str]:
    """(question, answer) about one statement."""
    return f"recall {fact.opening}", f"{fact.value} ."


def recall_both(first: Statement, second: Statement) -> tuple[str, str]:
    """(question, answer) about two statements of one opening, in order of appearance.

    Raises:
      ValueError: the two statements begin differently.
    """
    if first.opening != second.opening:
        raise ValueError(
            f"recall_both needs two statements that begin alike, not "
            f"{first.opening!r} and {second.opening!r}."
        )
    question = f"recall both {first.opening}"
    return question, f"{first.value} and {second.value} ."


def recall_two(first: Statement, second: Statement) -> tuple[str, str]:
    """(question, answer) about two different statements; `first` is answered first.

    The question names `first` last, so that its value continues the question.
    """
    question = f"recall {second.opening} and {first.opening}"
    return question, f"{first.value} . {second.text}"


def repeat() -> str:
    """The question whose answer is the whole context, word for word."""
    return "repeat :"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
