"""What is said of sharded embeddings, and what refuses them, in a process group of one rank."""

from __future__ import annotations

import pytest
import support
import torch
import torch.distributed as dist
from support import Classifier
from texts import bert_for, word_piece
from torch.distributed import fsdp
from torch.distributed.fsdp import FullyShardedDataParallel

from fastnlp_adv import AWP, FGM, SAM, SMART, GradientPenalty
from fastnlp_adv.robustness import HotFlip
from fastnlp_adv.taps import find_embeddings

pytestmark = [
    support.since_torch(2, 6, "torch shards on the CPU, and has `fully_shard`,"),
    pytest.mark.filterwarnings("ignore:.*NO_SHARD"),
]


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


ENGINES = {
    "fully_shard": lambda model: fsdp.fully_shard(model),
    "fsdp": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True),
    "flat": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=False),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
@pytest.mark.parametrize("emb_name", [None, "word_emb", "word_embeddings.weight", "word*.weight"])
def test_an_embedding_has_the_name_and_the_shape_of_the_bare_model(group, engine, emb_name):
    model = ENGINES[engine](Classifier())
    (embedding,) = find_embeddings(model, emb_name).embeddings
    assert (embedding.name, embedding.shape) == ("word_embeddings.weight", (50, 8))
    with FGM(model, emb_name=emb_name, granularity="sequence") as fgm:
        assert fgm.describe() == "FGM perturbs `word_embeddings.weight` (50 x 8, sharded): epsilon 1, per example"


@each_engine
def test_a_name_that_matches_nothing_lists_the_embeddings_of_the_bare_model(group, engine):
    with pytest.raises(ValueError, match=r"The model has the embeddings `word_embeddings.weight` \(50 x 8\)\. Give"):
        FGM(ENGINES[engine](Classifier()), emb_name="nowhere")


@each_engine
@pytest.mark.parametrize(
    "build",
    [
        lambda model: AWP(model),
        lambda model: SAM(model),
        lambda model: GradientPenalty(model),
        lambda model: SMART(model, bregman_weight=1.0),
        lambda model: HotFlip(model, word_piece()),
    ],
    ids=["awp", "sam", "gradient penalty", "averaged weights", "hotflip"],
)
def test_what_needs_weights_refuses_shards(group, engine, build):
    with pytest.raises(ValueError, match="to find every parameter whole in each process, but got"):
        build(ENGINES[engine](bert_for(word_piece())))


@each_engine
def test_a_model_that_is_sharded_later_is_refused_before_it_is_run(group, engine):
    model = Classifier()
    penalty = GradientPenalty(model)
    ENGINES[engine](model)
    with pytest.raises(ValueError, match="GradientPenalty, which differentiates twice"):
        penalty(lambda batch: pytest.fail("the model was run"), {})


def test_fully_shard_is_noticed_while_the_weights_are_gathered(group):
    model = fsdp.fully_shard(Classifier())
    with torch.no_grad():
        model(**{"input_ids": support.collate(support.samples(4))["input_ids"]})  # the root keeps its weights after it
    assert not any(hasattr(param, "device_mesh") for param in model.parameters())
    with pytest.raises(ValueError, match="AWP, which moves the weights, to find every parameter whole"):
        AWP(model)
