"""Word-level tokenizers for procedural languages, in the Hugging Face format.

The four special tokens always have the ids 0 to 3 and the words follow in the order given, so that a language
defined by arithmetic on ids and the tokenizer saved beside a model cannot disagree.
"""

from collections import Counter
from collections.abc import Sequence

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from shared.lm.special_tokens import SPECIAL_WORDS


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokenizer that splits on white space and maps word i of `words` to id 4 + i.

    <pad>, <eos>, <bos> and <sep> have the ids 0, 1, 2 and 3. Nothing is added to a text by itself, and a word that is
    not in the list is an error of the encoder, not an unknown token. Padding is on the left, as generation needs.
    Save it with `save_pretrained`, load it with `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: a token that is empty, repeated, or contains white space.
    """
    pad, eos, bos, sep = SPECIAL_WORDS
    tokens = [*SPECIAL_WORDS, *words]
    for token in tokens:
        if token.split() != [token]:
            raise ValueError(f"words: a token must be one non-empty word without white space, got {token!r}")
    repeated = sorted(token for token, count in Counter(tokens).items() if count > 1)
    if repeated:
        raise ValueError(f"words: every token must be different, got {repeated} more than once")

    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        sep_token=sep,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
