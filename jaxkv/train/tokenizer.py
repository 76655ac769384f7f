"""The word-level tokenizer of the demo model: one id a word of the language.

It is an ordinary `tokenizer.json`, which `tokenizers` and `transformers` load alike:
text is split at white space, an unknown word is `<unk>`, `<bos>` goes first, and
decoding joins the words by single spaces (what `tokenizers` does when no decoder is
set) and leaves out the specials.
"""

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from jaxkv.evaluate.language import BOS, SPECIALS, UNK, VOCABULARY


def word_tokenizer() -> Tokenizer:
    """The tokenizer of the language: id i is `VOCABULARY[i]`.

    Example:
      >>> word_tokenizer().encode("recall the calm fox").tokens
      ['<bos>', 'recall', 'the', 'calm', 'fox']
    """
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=SPECIALS[UNK]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    bos = SPECIALS[BOS]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    return tokenizer
