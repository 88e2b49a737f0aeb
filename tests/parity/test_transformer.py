"""Transformers beside transformers' Marian and torch's own with the same weights; what is decoded beside generate's."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.peers import randomise, relative_difference, transformers
from vitrail.errors import WeightsError
from vitrail.infer.decode import Limits, beam_search, greedy
from vitrail.models import config_of, configure, create_model
from vitrail.models.transformer import Transformer
from vitrail.weights import export_weights, load_folder, load_weights

SIZES = {
    "small, swish": {"d_model": 16, "layers": 2, "heads": 2, "ffn": 24, "activation_function": "swish"},
    "other, relu": {"d_model": 24, "layers": 3, "heads": 3, "ffn": 40, "activation_function": "relu"},
}
PAD, EOS, VOCABULARY = 96, 0, 97


def marian(d_model=16, layers=2, heads=2, ffn=24, **more):
    stacks = ("encoder", "decoder")
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=d_model,
        **{f"{s}_layers": layers for s in stacks},
        **{f"{s}_attention_heads": heads for s in stacks},
        **{f"{s}_ffn_dim": ffn for s in stacks},
        **{"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD, "scale_embedding": True, **more},
        max_position_embeddings=64,
    )
    model = randomise(transformers.MarianMTModel(config), seed=3).eval()
    for stack in (model.model.encoder, model.model.decoder):  # a table that is computed is no weight
        stack.embed_positions.weight.data = stack.embed_positions.create_weight()
    return model


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("marian")
    peer = marian(**SIZES[request.param])
    peer.save_pretrained(path)
    return path, peer


def texts(seed=0, rows=4, source=9, target=7):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY - 1, (rows, source), generator=generator)
    keep = torch.ones(rows, source, dtype=torch.bool)
    keep[1::4, 6:] = keep[3::4, 1:] = False
    ids[~keep] = PAD
    wanted = torch.randint(1, VOCABULARY - 1, (rows, target), generator=generator)
    wanted[:, 0] = PAD
    return ids, wanted, keep


@torch.no_grad()
def test_marian_from_a_folder(folder):
    path, peer = folder
    model, _, _ = load_folder(path)
    source, target, keep = texts()
    theirs = peer(input_ids=source, attention_mask=keep.long(), decoder_input_ids=target).logits
    assert relative_difference(model.eval()(source, target, keep), theirs) <= 1e-5
    report = load_weights(create_model("transformer_base", **_fields(model.config)), path)
    assert report.layout == "transformers"
    assert report.matched == len(model.state_dict())


def _fields(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@torch.no_grad()
@pytest.mark.parametrize("more", [{"share_encoder_decoder_embeddings": False}, {"tie_word_embeddings": False}])
def test_marian_that_shares_less(tmp_path, more):
    peer = marian(**{"share_encoder_decoder_embeddings": False, **more})
    peer.save_pretrained(tmp_path)
    model, _, _ = load_folder(tmp_path)
    source, target, keep = texts()
    theirs = peer(input_ids=source, attention_mask=keep.long(), decoder_input_ids=target).logits
    assert relative_difference(model.eval()(source, target, keep), theirs) <= 1e-5


@torch.no_grad()
def test_transformers_reads_what_we_write(folder, tmp_path):
    from safetensors.torch import save_file

    from vitrail.weights.configs import to_transformers

    path, peer = folder
    model, _, _ = load_folder(path)
    save_file(export_weights(model, "transformers"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(to_transformers(model.config, None)))
    again = transformers.MarianMTModel.from_pretrained(tmp_path).eval()
    source, target, keep = texts()
    given = {"input_ids": source, "attention_mask": keep.long(), "decoder_input_ids": target}
    assert torch.equal(again(**given).logits, peer(**given).logits)


def test_old_files_name_the_embedding_four_times(folder):
    path, peer = folder
    model, _, _ = load_folder(path)
    whole = dict(peer.state_dict())
    assert {"lm_head.weight", "model.encoder.embed_tokens.weight"} <= whole.keys()
    load_weights(model, whole)
    with pytest.raises(WeightsError, match="one matrix under 4 names"):
        load_weights(model, whole | {"lm_head.weight": whole["lm_head.weight"] + 1})


def test_a_bias_of_zeros_needs_no_place(folder):
    path, peer = folder
    bare = create_model("transformer_base", **{**_fields(load_folder(path)[0].config), "head_bias": False})
    state = dict(peer.state_dict())
    with pytest.raises(WeightsError, match="head_bias=True"):
        load_weights(bare, state)
    report = load_weights(bare, state | {"final_logits_bias": torch.zeros(1, VOCABULARY)})
    assert "left out" in str(report)


@pytest.mark.parametrize(
    "change",
    [{"normalize_before": True}, {"activation_function": "tanh"}, {"decoder_ffn_dim": 8}, {"decoder_vocab_size": 7}],
)
def test_forms_of_marian_that_vitrail_lacks(folder, tmp_path, change):
    path, _ = folder
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | change))
    with pytest.raises(WeightsError, match=next(iter(change))):
        load_folder(tmp_path)


def test_only_post_norm_in_halves_is_marian():
    with pytest.raises(WeightsError, match="layout='interleaved'"):
        export_weights(create_model("test_transformer"), "transformers")


@pytest.mark.parametrize("layout", ["fairseq", "opennmt", "torch"])
@pytest.mark.parametrize("share", ["all", "target", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_layouts_round_trip(layout, share, bias):
    made = {"share": share, "head_bias": bias, "norm_first": True, "final_norm": True}
    model, again = (create_model("test_transformer", **made) for _ in range(2))
    report = load_weights(again, export_weights(randomise(model), layout))
    assert report.layout == layout
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


# ---- torch.nn.Transformer


@torch.no_grad()
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_stacks_of_torch(norm_first, final_norm):
    config = configure(config_of("test_transformer"), {"norm_first": norm_first, "final_norm": final_norm})
    torch.manual_seed(0)
    peer = nn.Transformer(16, 2, 2, 2, 24, dropout=0.0, batch_first=True, norm_first=norm_first)
    if not final_norm:
        peer.encoder.norm = peer.decoder.norm = None
    randomise(peer).eval()
    model = Transformer(config).eval()
    state = {f"transformer.{name}": tensor for name, tensor in peer.state_dict().items()}
    assert load_weights(model, state | {"embed.weight": model.embed.weight.detach()}).layout == "torch"
    source, target, keep = texts()
    source, target = source % 29, target % 29
    peer.encoder.use_nested_tensor = False  # a shortcut of its own, with warnings
    placed = [model.place(model.embed, ids) for ids in (source, target)]
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    theirs = peer(*placed, tgt_mask=later, src_key_padding_mask=~keep, memory_key_padding_mask=~keep)
    assert relative_difference(model.decode(target, *model.encode(source, keep)), theirs) <= 1e-5


# ---- decoding


def generated(peer, source, keep, **settings):
    """Return what generate finds after its first token, and the scores of a beam search."""
    settings = {"max_new_tokens": 20, "forced_eos_token_id": None, "return_dict_in_generate": True, **settings}
    found = peer.generate(
        input_ids=source, attention_mask=keep.long(), do_sample=False, output_scores=True, pad_token_id=PAD, **settings
    )
    return found.sequences[:, 1:], getattr(found, "sequences_scores", None)


def texts_of(tokens):
    """Return each row up to its eos."""
    return [row[: row.index(EOS)] if EOS in row else row for row in tokens.tolist()]


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A model that learned a little of copying its source, so that its texts end here and there, and its peer."""
    path = tmp_path_factory.mktemp("copies")
    marian(d_model=32, layers=1, ffn=64, activation_function="relu").save_pretrained(path)
    torch.manual_seed(0)
    model = Transformer(configure(load_folder(path)[0].config, {"drop_rate": 0.0}))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(150):
        source, target, keep = texts(seed=step, rows=32)
        wanted = torch.where(keep, source, EOS)
        target = torch.cat([target[:, :1], wanted[:, :-1]], 1)
        model.zero_grad()
        nn.functional.cross_entropy(model(source, target, keep).flatten(0, 1), wanted.flatten()).backward()
        optimiser.step()
    peer = transformers.MarianMTModel.from_pretrained(path).eval()
    peer.load_state_dict(export_weights(model, "transformers"), strict=False)
    peer.tie_weights()
    return model.eval(), peer


def limits(model):
    return Limits(model.config.specials, 20, banned=())


def test_greedy_finds_what_generate_finds(ending):
    model, peer = ending
    source, _, keep = texts(rows=32)
    tokens, _ = generated(peer, source, keep, num_beams=1)
    found = greedy(model, source, keep, limits=limits(model))
    assert found.rows() == texts_of(tokens)
    assert 0 < int(found.ended.sum()) < len(source)
    assert len(set(found.lengths.tolist())) > 2


@pytest.mark.parametrize("beams", [2, 4, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_beams_find_what_generate_finds(ending, beams, alpha):
    model, peer = ending
    source, _, keep = texts(rows=32, seed=beams)
    tokens, scores = generated(peer, source, keep, num_beams=beams, length_penalty=alpha, early_stopping=False)
    found = beam_search(model, source, keep, limits=limits(model), beams=beams, length_penalty=alpha, penalty="power")
    assert found.rows() == texts_of(tokens)
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-4)
