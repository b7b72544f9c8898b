"""The methods on the models that come with fastNLP; all of them run on today's torch."""

import pytest
import torch
import torch.nn.functional as F
from fastNLP.core.utils import seq_len_to_mask
from fastNLP.models.torch import (
    AdvSeqLabel,
    BiaffineParser,
    BiLSTMCRF,
    CNNText,
    LSTMSeq2SeqModel,
    SeqLabeling,
    SequenceGeneratorModel,
    TransformerSeq2SeqModel,
)
from support import CLASSES, VOCAB, build, distance, textbook_fgm, weights
from torch.utils.data import DataLoader

from fastnlp_adv import FGMCallback, RDropCallback

EMBED = (VOCAB, 16)
SEQ2SEQ = {"bos_token_id": 1, "eos_token_id": 2}
BOUND = {"bind_encoder_decoder_embed": True, "bind_decoder_input_output_embed": False}


def fields_of(model):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCAB, (4, 7), generator=g)
    lengths = torch.tensor([7, 5, 6, 4])
    tags = torch.randint(0, CLASSES, (4, 7), generator=g)
    return {
        "words": ids,
        "seq_len": lengths,
        "target": tags[:, 0] if isinstance(model, CNNText) else tags,
        "src_tokens": ids,
        "tgt_tokens": ids.flip(1),
        "src_seq_len": lengths,
        "tgt_seq_len": lengths,
        "words1": ids,
        "words2": tags,
        "target1": torch.randint(0, 4, (4, 7), generator=g),
        "target2": tags,
    }


def transformer():
    sizes = {"max_position": 32, "num_layers": 1, "d_model": 16, "n_head": 2, "dim_ff": 16}
    return SequenceGeneratorModel(TransformerSeq2SeqModel.build_model(EMBED, **sizes, **BOUND), **SEQ2SEQ)


def lstm():
    sizes = {"num_layers": 1, "hidden_size": 16}
    return SequenceGeneratorModel(LSTMSeq2SeqModel.build_model(EMBED, **sizes, **BOUND), **SEQ2SEQ)


def parser():
    sizes = {"rnn_layers": 1, "rnn_hidden_size": 8, "arc_mlp_size": 8, "label_mlp_size": 8}
    return BiaffineParser(EMBED, pos_vocab_size=CLASSES, pos_emb_dim=8, num_label=CLASSES, **sizes)


#: name: (how to make it, part of the name of its input embedding)
MODELS = {
    "CNNText": (lambda: CNNText(EMBED, CLASSES, (4,), (3,)), "embed"),
    "BiLSTMCRF": (lambda: BiLSTMCRF(EMBED, CLASSES, hidden_size=8), "embed"),
    "SeqLabeling": (lambda: SeqLabeling(EMBED, 8, CLASSES), "embed"),
    "AdvSeqLabel": (lambda: AdvSeqLabel(EMBED, 8, CLASSES), "Embedding"),
    "BiaffineParser": (parser, "word_embedding"),
    "SequenceGenerator-lstm": (lstm, "encoder.embed"),
    "SequenceGenerator-transformer": (transformer, "encoder.embed"),
}


def make(factory):
    torch.manual_seed(0)
    return factory()


def train(model, callbacks=None, **kwargs):
    data = DataLoader([fields_of(model)] * 3, batch_size=1, collate_fn=lambda rows: rows[0])
    trainer = build(model, callbacks, train_dataloader=data, n_batches=-1, n_epochs=1, **kwargs)
    torch.manual_seed(1)
    trainer.run()
    assert torch.isfinite(weights(model)).all()
    return trainer


@pytest.mark.parametrize("factory, name", MODELS.values(), ids=MODELS.keys())
def test_fgm_equals_the_textbook(factory, name):
    ours, theirs, plain = make(factory), make(factory), make(factory)
    train(ours, [FGMCallback()])
    train(theirs, batch_step_fn=textbook_fgm(theirs, name=name))
    train(plain)
    assert distance(ours, theirs) < 1e-5
    assert distance(ours, plain) > 1e-4


class Tagger(BiLSTMCRF):
    """As its users make it fit for R-Drop: the training step returns the logits, too."""

    def train_step(self, words, target, seq_len):
        hidden, _ = self.lstm(self.embed(words), seq_len=seq_len)
        pred, mask = self.dropout(self.fc(hidden)), seq_len_to_mask(seq_len)
        return {"loss": self.crf(pred.log_softmax(-1), target, mask).mean(), "pred": pred}


class Generator(SequenceGeneratorModel):
    def train_step(self, src_tokens, tgt_tokens, src_seq_len, tgt_seq_len):
        pred = self(src_tokens, tgt_tokens, src_seq_len, tgt_seq_len)["pred"][:, :-1]
        mask = seq_len_to_mask(tgt_seq_len, max_len=tgt_tokens.shape[1])
        target = tgt_tokens.masked_fill(~mask, -100)[:, 1:]
        return {"loss": F.cross_entropy(pred.transpose(1, 2), target), "pred": pred}


WITH_PRED = {
    "BiLSTMCRF": lambda: Tagger(EMBED, CLASSES, hidden_size=8),
    "SequenceGenerator": lambda: Generator(transformer().seq2seq_model, **SEQ2SEQ),
}


@pytest.mark.parametrize("factory", WITH_PRED.values(), ids=WITH_PRED.keys())
@pytest.mark.parametrize("mode", ["concat", "two_pass"])
def test_rdrop_trains_a_model_that_returns_its_logits(factory, mode):
    model, plain = make(factory), make(factory)
    trainer = train(model, [RDropCallback(mode=mode)])
    train(plain)
    assert trainer.state["adv"]["kl"] > 0
    assert distance(model, plain) > 1e-4
