"""NEFTune against its definition on embedded inputs."""

from __future__ import annotations

import math

import pytest
import torch
from references import assert_same, batch, bert, classifier, gradients, words
from torch.nn.functional import cross_entropy
from transformers.models.bart import modeling_bart

from fastnlp_adv import NEFTune

IDS, LABELS = batch(4, 7)
IDS[0, 3:] = IDS[1, 5:] = 0
SCALED = pytest.mark.skipif(
    not hasattr(modeling_bart, "BartScaledWordEmbedding"), reason="this transformers scales rows after the lookup"
)


@pytest.mark.parametrize("padding_idx", [0, None])
def test_a_step(padding_idx):
    """Noise example by example: its size follows from the number of real tokens."""
    ours, theirs = classifier(padding_idx=padding_idx), classifier(padding_idx=padding_idx)
    neftune = NEFTune(ours, alpha=3.0)
    neftune.stream.generator = torch.Generator().manual_seed(5)
    neftune.step(lambda: cross_entropy(ours(IDS), LABELS))
    embedded = theirs.word_embeddings(IDS)
    noise = torch.empty_like(embedded).uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    for example, ids in enumerate(IDS.tolist()):
        real = [padding_idx is None or i != padding_idx for i in ids]
        scale = 3.0 / math.sqrt(sum(real) * embedded.shape[-1])
        for place, is_real in enumerate(real):
            noise[example, place] *= scale * is_real
    cross_entropy(theirs.head(theirs.rnn(embedded + noise)[0].mean(1)), LABELS).backward()
    assert_same(gradients(ours), gradients(theirs))
    assert neftune.perturbation_norm.item() == pytest.approx(noise.norm().item())
    neftune.close()


def test_without_noise_it_is_plain_training():
    ours, theirs = classifier(), classifier()
    NEFTune(ours, alpha=0.0).step(lambda: cross_entropy(ours(IDS), LABELS))
    cross_entropy(theirs(IDS), LABELS).backward()
    assert_same(gradients(ours), gradients(theirs))


def gemma():
    transformers = pytest.importorskip("transformers", minversion="4.50")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    config = transformers.Gemma3TextConfig(vocab_size=50, hidden_size=16, head_dim=8, pad_token_id=0, **sizes)
    return transformers.Gemma3ForCausalLM(config)


def bart():
    transformers = pytest.importorskip("transformers")
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=50, d_model=16, dropout=0.0, scale_embedding=True, **sizes, **heads)
    return transformers.BartForSequenceClassification(config)


def outputs_of(model, run):
    """The outputs of the model's lookups of words, after all hooks that are on by then."""
    seen, tables = [], [m for m in model.modules() if getattr(m, "weight", None) is words(model).weight]
    handles = [
        table.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        for table in tables
        if isinstance(table, torch.nn.Embedding)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def hooks_of_transformers():
    integrations = pytest.importorskip("transformers.integrations")
    if not hasattr(integrations, "neftune"):
        return pytest.importorskip("transformers.trainer_utils").neftune_post_forward_hook
    return integrations.neftune.neftune_post_forward_hook


@pytest.mark.parametrize("alpha", [0.5, 5.0, 15.0])
@pytest.mark.parametrize(("build", "scale"), [(gemma, 4.0), pytest.param(bart, 4.0, marks=SCALED), (bert, 1.0)])
def test_the_noise_is_that_of_transformers(build, scale, alpha):
    """The output of a lookup is clean plus noise, and no scaling of the rows touches the noise."""
    torch.manual_seed(0)
    model = build().double().train()
    ids = torch.randint(5, 50, (4, 7))
    ids[:, -1] = 2  # the end of a text, for BART
    labels = ids if build is gemma else torch.tensor([0, 1, 2, 0])

    def run():
        return model(input_ids=ids, labels=labels).loss

    clean = outputs_of(model, run)
    rows = words(model).weight[ids].detach()
    torch.testing.assert_close(clean[0], rows * scale)
    neftune = NEFTune(model, alpha=alpha)
    neftune.stream.generator = torch.Generator().manual_seed(5)
    ours = outputs_of(model, lambda: neftune.step(run))
    neftune.close()
    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight is words(model).weight:
            module.neftune_noise_alpha = alpha
            handles.append(module.register_forward_hook(hooks_of_transformers()))
    torch.manual_seed(5)
    theirs = outputs_of(model, run)
    for handle in handles:
        handle.remove()
    assert len(ours) == (2 if build is bart else 1)  # encoder and decoder
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert (ours[0] - clean[0]).abs().max() <= alpha / math.sqrt(7 * 16)
    assert neftune.perturbation_norm.item() == pytest.approx(math.hypot(*map(norm_of, zip(ours, clean, strict=True))))


def norm_of(pair):
    return (pair[0] - pair[1]).norm().item()


@SCALED
def test_in_rows_it_is_scaled_with_them():
    model = bart().double().train()
    ids = torch.randint(5, 50, (4, 7))
    ids[:, -1] = 2
    neftune = NEFTune(model, alpha=0.5, relative=True)
    neftune.stream.generator = torch.Generator().manual_seed(5)
    found = outputs_of(
        model, lambda: neftune.step(lambda: model(input_ids=ids, labels=torch.tensor([0, 1, 2, 0])).loss)
    )
    noise = torch.empty(4, 7, 16, dtype=torch.float64).uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    weight = words(model).weight.detach()
    noise *= 0.5 * weight.norm(dim=1).mean() / math.sqrt(7 * 16)
    torch.testing.assert_close(found[0], 4 * (weight[ids] + noise))
