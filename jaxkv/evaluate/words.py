"""The words of the demo's language: 512, and which noun likes to follow which."""

import numpy as np
from jaxtyping import Int

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)

FUNCTION_WORDS = tuple(
    """
    the . and recall both repeat : let be note follow trace common frequent from is
    here back again
    """.split()
)

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
    maid mango map maple marble market meadow moon mouse
    """.split()
)

VOCABULARY: tuple[str, ...] = SPECIALS + FUNCTION_WORDS + ADJECTIVES + VERBS + NOUNS

SUCCESSORS: Int[np.ndarray, "nouns 8"] = (
    17 * np.arange(len(NOUNS))[:, None] + 41 * np.arange(8) + 5
) % len(NOUNS)
"""`SUCCESSORS[n]` are the indices of the eight nouns that are likely after noun n."""

CHAIN = 0.5
"""The probability that a noun of a value is a successor of the noun before it."""

LONGEST = 8
"""A value has 1 to so many nouns, each length as often as any other."""

STOCK = (
    "grass is green and lake is blue .",
    "moon is pale and dawn is golden .",
    "here is bread and here is honey .",
    "back again and here again .",
)
"""The filler: these four sentences, in turn, as often as there is room."""
