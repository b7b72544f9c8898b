"""NEFTune against its definition on embedded inputs."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from references import (
    IDS,
    LABELS,
    LOSS,
    assert_same,
    bert,
    classifier,
    gradients,
    length,
    loss_with,
    noise_on,
    same_noise,
    words,
)
from transformers.models.bart import modeling_bart

from fastnlp_adv import NEFTune

SCALED = pytest.mark.skipif(
    not hasattr(modeling_bart, "BartScaledWordEmbedding"), reason="this transformers scales rows after the lookup"
)


@pytest.mark.parametrize("padding_idx", [0, None])
def test_a_step(padding_idx):
    """Noise example by example: its size follows from the number of real tokens."""
    ours, theirs = classifier(padding_idx=padding_idx), classifier(padding_idx=padding_idx)
    neftune = NEFTune(ours, alpha=3.0)
    noise = noise_on(IDS, 8, 3.0, same_noise(neftune), padding_idx)
    neftune.step(lambda: LOSS(ours))
    loss_with(theirs, IDS, LABELS)([noise]).backward()
    assert_same(gradients(ours), gradients(theirs))
    assert neftune.perturbation_norm.item() == pytest.approx(noise.norm().item())


def gemma():
    pytest.importorskip("transformers", minversion="4.50")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    config = transformers.Gemma3TextConfig(vocab_size=50, hidden_size=16, head_dim=8, pad_token_id=0, **sizes)
    return transformers.Gemma3ForCausalLM(config)


def bart():
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=50, d_model=16, dropout=0.0, scale_embedding=True, **sizes, **heads)
    return transformers.BartForSequenceClassification(config)


def tables_of(model):
    """The modules that look up words."""
    return [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.weight is words(model).weight]


def outputs_of(model, run):
    """The outputs of the model's lookups of words, after all hooks that are on by then."""
    seen = []
    handles = [
        table.register_forward_hook(lambda m, args, out: seen.append(out.detach())) for table in tables_of(model)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def with_batch(build):
    torch.manual_seed(0)
    model, ids = build().double().eval(), torch.randint(5, 50, (4, 7))  # in training BART draws numbers of its own
    for table in tables_of(model):
        table.train()  # without it the hook of transformers adds no noise
    ids[:, -1] = 2  # the end of a text, for BART
    labels = ids if build is gemma else torch.tensor([0, 1, 2, 0])
    return model, ids, lambda: model(input_ids=ids, labels=labels).loss


def hooks_of_transformers():
    integrations = pytest.importorskip("transformers.integrations")
    if not hasattr(integrations, "neftune"):
        return pytest.importorskip("transformers.trainer_utils").neftune_post_forward_hook
    return integrations.neftune.neftune_post_forward_hook


@pytest.mark.parametrize(("build", "scale"), [(gemma, 4.0), pytest.param(bart, 4.0, marks=SCALED), (bert, 1.0)])
def test_the_noise_is_that_of_transformers(build, scale, alpha=5.0):
    """The output of a lookup is clean plus noise, and no scaling of the rows touches the noise."""
    model, ids, run = with_batch(build)
    clean = outputs_of(model, run)
    rows = words(model).weight[ids].detach()
    torch.testing.assert_close(clean[0], rows * scale)
    neftune = NEFTune(model, alpha=alpha)
    same_noise(neftune, 5)
    ours = outputs_of(model, lambda: neftune.step(run))
    neftune.close()
    for table in tables_of(model):
        table.neftune_noise_alpha = alpha
        table.register_forward_hook(hooks_of_transformers())
    torch.manual_seed(5)
    theirs = outputs_of(model, run)
    assert len(ours) == (2 if build is bart else 1)  # encoder and decoder
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert (ours[0] - clean[0]).abs().max() <= alpha / math.sqrt(7 * 16)
    assert neftune.perturbation_norm.item() == pytest.approx(length(*map(torch.sub, ours, clean)))


@SCALED
def test_in_rows_it_is_scaled_with_them():
    model, ids, run = with_batch(bart)
    neftune = NEFTune(model, alpha=0.5, relative=True)
    generator = same_noise(neftune)
    found = outputs_of(model, lambda: neftune.step(run))
    weight = words(model).weight.detach()
    noise = noise_on(ids, 16, 0.5 * weight.norm(dim=1).mean(), generator)
    torch.testing.assert_close(found[0], 4 * (weight[ids] + noise))
