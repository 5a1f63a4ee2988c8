"""Token ids that every procedural language of this project uses; its words follow from id 4 on.

Pretrained models have their own: there the ids come from the tokenizer.
"""

PAD_ID, EOS_ID, BOS_ID, SEP_ID = range(4)
FIRST_WORD_ID = 4
SPECIAL_WORDS = ("<pad>", "<eos>", "<bos>", "<sep>")
