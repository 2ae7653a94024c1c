"""Texts and pairs become the same ids as in transformers, with the tokenizers that encoders have."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, MPNetTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from arriero.models.tokenizers.tokenizer import load_tokenizer
from references.tokenizer_strings import strings

STRINGS = strings()[::3]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained(kind, trainer, before, **options):
    tokenizer = Tokenizer(kind())
    tokenizer.pre_tokenizer = before
    texts = [text for text in strings() if text.isascii()]
    tokenizer.train_from_iterator(texts, trainer(vocab_size=1500, show_progress=False, **options))
    return json.loads(tokenizer.to_str())["model"]


def roberta():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"special_tokens": SPECIAL, "initial_alphabet": alphabet}
    model = trained(models.BPE, trainers.BpeTrainer, before, **options)
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def xlm_roberta():
    options = {"special_tokens": SPECIAL, "unk_token": "<unk>"}
    model = trained(models.Unigram, trainers.UnigramTrainer, pre_tokenizers.Metaspace(), **options)
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in model["vocab"]])


def word_pieces(special):
    model = trained(
        models.WordPiece, trainers.WordPieceTrainer, pre_tokenizers.BertPreTokenizer(), special_tokens=special
    )
    return model["vocab"]


def bert():
    return BertTokenizer(vocab=word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), do_lower_case=False)


def mpnet():
    return MPNetTokenizer(vocab=word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))


@pytest.fixture(scope="module", params=[roberta, xlm_roberta, bert, mpnet], ids=lambda make: make.__name__)
def both(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param.__name__)
    request.param().save_pretrained(path)
    (path / "config.json").write_text("{}")
    return load_tokenizer(path), AutoTokenizer.from_pretrained(path)


def test_texts(both):
    ours, theirs = both
    for text in STRINGS:
        if text.startswith("<s>"):  # a text that brings its own beginning gets no second one here
            continue
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode_within(text, 7) == theirs(text, truncation=True, max_length=7)["input_ids"], text


@pytest.mark.parametrize("max_tokens", [None, 20, 11])
def test_pairs(both, max_tokens):
    ours, theirs = both
    for first, second in zip(STRINGS, STRINGS[211:], strict=False):
        expected = theirs(
            first, second, truncation=max_tokens is not None, max_length=max_tokens, return_token_type_ids=True
        )
        ids, first_segment = ours.encode_pair(first, second, max_tokens=max_tokens)
        assert ids == expected["input_ids"], (first, second)
        assert first_segment == expected["token_type_ids"].count(0)
