"""Image GPT equals transformers' with the same weights, in both its forms, and OpenAI's arrays come and go."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.peers import randomise, relative_difference, transformers
from vitrail.errors import WeightsError
from vitrail.models import build, create_model
from vitrail.models.igpt import IGPTConfig
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.configs import to_transformers
from vitrail.weights.families import family_of

TOLERANCE = 1e-5
SIZES = {  # n_positions, n_embd, n_layer, n_head, n_inner, colours
    "square": (36, 48, 3, 3, None, 20),
    "wide": (64, 32, 2, 2, 80, 33),
}


def peer(size, kind, classes=5):
    positions, width, depth, heads, inner, colours = SIZES[size]
    config = transformers.ImageGPTConfig(
        n_positions=positions,
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        n_inner=inner,
        vocab_size=colours + 1,
        num_labels=classes,
    )
    return randomise(getattr(transformers, kind)(config), seed=3)


def folder(model, path, colours):
    """What is on the Hub: weights and config.json as transformers saves them, and the processor's clusters."""
    model.save_pretrained(path)
    clusters = (np.random.default_rng(0).random((colours, 3)) * 2 - 1).tolist()
    side = int(model.config.n_positions**0.5)
    processor = {"clusters": clusters, "do_normalize": True, "do_resize": True, "resample": 2, "size": side}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return torch.tensor(clusters)


def stream(config, count):
    tokens = torch.randint(config.colours, (2, count), generator=torch.Generator().manual_seed(1))
    return tokens, torch.cat([torch.full((2, 1), config.start), tokens[:, :-1]], 1)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_pixels_equal_transformers(tmp_path, size):
    theirs = peer(size, "ImageGPTForCausalImageModeling")
    palette = folder(theirs, tmp_path / "hub", SIZES[size][-1])
    ours, card, _ = load_folder(tmp_path / "hub")
    assert torch.equal(ours.palette, palette)
    assert (card.mean, card.std, card.input_size) == ((0.5,) * 3, (0.5,) * 3, ours.config.img_size)
    tokens, shifted = stream(ours.config, SIZES[size][0])
    assert relative_difference(ours.eval()(tokens), theirs(shifted).logits) <= TOLERANCE
    hidden = theirs.transformer(shifted, output_hidden_states=True).hidden_states
    for layer, block in enumerate(theirs.transformer.h):  # features: the pre-norm of each block
        found = ours._layers(shifted, ours.config.img_size, [layer])[0]
        assert relative_difference(found, block.ln_1(hidden[layer])) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_classes_equal_transformers(tmp_path, size):
    theirs = peer(size, "ImageGPTForImageClassification")
    folder(theirs, tmp_path / "hub", SIZES[size][-1])
    ours, _, _ = load_folder(tmp_path / "hub")
    images = torch.rand(2, 3, *ours.config.img_size) * 2 - 1
    assert relative_difference(ours.eval()(images), theirs(ours.tokens(images)).logits) <= TOLERANCE


@pytest.mark.parametrize("kind", ["ImageGPTForCausalImageModeling", "ImageGPTForImageClassification"])
@torch.no_grad()
def test_transformers_reads_what_we_write(tmp_path, kind):
    theirs = peer("wide", kind)
    palette = folder(theirs, tmp_path / "hub", 33)
    ours, _, _ = load_folder(tmp_path / "hub")
    written = export_weights(ours, "transformers")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(written[name], tensor), name
    config = transformers.ImageGPTConfig(**to_transformers(ours.config, None))
    again = getattr(transformers, kind)(config)
    again.load_state_dict(written, strict=True)
    tokens = torch.randint(33, (2, 64))
    assert torch.equal(again.eval()(tokens).logits, theirs(tokens).logits)
    said = family_of(ours.config).preprocessor(ours)
    assert said["image_processor_type"] == "ImageGPTImageProcessor"
    assert torch.allclose(torch.tensor(said["clusters"]), palette)


@torch.no_grad()
def test_the_processor_gives_our_tokens(tmp_path):
    ours = create_model("igpt_nano_8", colours=30)
    save_folder(tmp_path / "f", ours, card=Card(input_size=(8, 8)))
    told = json.loads((tmp_path / "f" / "preprocessor_config.json").read_text())
    processor = transformers.models.imagegpt.image_processing_pil_imagegpt.ImageGPTImageProcessorPil.from_dict(told)
    image = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["input_ids"])).reshape(1, 64)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(ours.tokens(x), theirs.long())


def test_a_state_dict_without_a_palette_leaves_the_models_own():
    theirs = peer("wide", "ImageGPTForCausalImageModeling")
    ours = build(IGPTConfig((8, 8), colours=33, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.5, bias=True))
    before = ours.palette.clone()
    report = load_weights(ours, theirs.state_dict())
    assert torch.equal(ours.palette, before)
    assert "the file has no palette: the model's own stays" in str(report)


def openai_arrays(config, seed=0):
    """Variables of a TensorFlow checkpoint of OpenAI's, in their shapes."""
    rng = np.random.default_rng(seed)
    width, heads, hidden = config.embed_dim, config.num_heads, config.hidden_dim

    def normal(*shape):
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    found = {"wte": normal(config.colours, width), "wtet": normal(config.colours, width), "sos": normal(width)}
    found |= {"wpe": normal(config.img_size[0] * config.img_size[1], width), "ln_f/g": normal(width)}
    for i in range(config.depth):
        for part in ("q_proj", "k_proj", "v_proj", "c_proj"):
            found[f"h{i}/attn/{part}"] = normal(heads, width // heads, width)
        found |= {f"h{i}/ln_1/g": normal(width), f"h{i}/ln_2/g": normal(width)}
        found |= {f"h{i}/mlp/c_fc/w": normal(width, hidden), f"h{i}/mlp/c_proj/w": normal(hidden, width)}
    return {f"model/{name}": array for name, array in found.items()}


def by_hand(arrays, config, stream):
    """The network of openai/image-gpt on such arrays, written down from the paper and the layout, in float64."""
    get = {k.removeprefix("model/"): torch.from_numpy(v).double() for k, v in arrays.items()}

    def norm(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain

    rows = torch.cat([get["wte"], get["sos"][None]])
    x = rows[stream] + get["wpe"][: stream.shape[1]]
    hidden = torch.ones(stream.shape[1], stream.shape[1], dtype=torch.bool).triu(1)
    for i in range(config.depth):
        y = norm(x, get[f"h{i}/ln_1/g"])
        q, k, v = (torch.einsum("bnc,hdc->bhnd", y, get[f"h{i}/attn/{p}_proj"]) for p in "qkv")
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf")).softmax(-1)
        x = x + torch.einsum("bhnd,hdc->bnc", scores @ v, get[f"h{i}/attn/c_proj"])
        y = norm(x, get[f"h{i}/ln_2/g"]) @ get[f"h{i}/mlp/c_fc/w"]
        x = x + y * torch.sigmoid(1.702 * y) @ get[f"h{i}/mlp/c_proj/w"]
    return norm(x, get["ln_f/g"]) @ get["wtet"].T


OURS = IGPTConfig((6, 6), colours=20, embed_dim=48, depth=2, num_heads=3)


@torch.no_grad()
def test_openai_arrays_are_read_and_written(tmp_path):
    arrays, model = openai_arrays(OURS), build(OURS).eval()
    np.savez(tmp_path / "model.npz", **arrays, **{"model/h0/attn/q_proj/Adam": np.zeros(3, np.float32)})
    report = load_weights(model, tmp_path / "model.npz")
    assert (report.layout, report.title) == ("original", "OpenAI image GPT")
    tokens, shifted = stream(OURS, 36)
    assert relative_difference(model(tokens), by_hand(arrays, OURS, shifted)) <= TOLERANCE
    written = export_weights(model, "original")
    assert written.keys() == arrays.keys() | {"model/kmeans_centers"}
    assert all(np.array_equal(written[name], array) for name, array in arrays.items())
    again = build(OURS)
    load_weights(again, written)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())


@torch.no_grad()
def test_openai_and_transformers_agree():
    """OpenAI's arrays through our table, out in transformers' names: its model computes the same."""
    arrays, model = openai_arrays(OURS), build(OURS).eval()
    load_weights(model, {k: torch.from_numpy(v) for k, v in arrays.items()})
    theirs = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(**to_transformers(OURS, None))
    ).eval()
    theirs.load_state_dict(export_weights(model, "transformers"), strict=True)
    _, shifted = stream(OURS, 36)
    assert relative_difference(theirs(shifted).logits, by_hand(arrays, OURS, shifted)) <= TOLERANCE


def test_zero_biases_are_dropped_and_others_are_not():
    theirs = transformers.ImageGPTForCausalImageModeling(
        transformers.ImageGPTConfig(n_positions=36, n_embd=48, n_layer=2, n_head=3, vocab_size=21)
    )
    weights = theirs.state_dict()
    ours = build(OURS)
    load_weights(ours, weights)
    weights["transformer.h.1.mlp.c_fc.bias"] = weights["transformer.h.1.mlp.c_fc.bias"] + 1
    with pytest.raises(WeightsError, match="bias=True"):
        load_weights(ours, weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "masked"}, "autoregressive"),
        ({"num_classes": 3}, "shift"),
        ({"num_classes": 3, "joint": True}, "joint"),
        ({"in_chans": 1}, "RGB"),
    ],
)
def test_what_transformers_lacks_is_refused(changes, words):
    with pytest.raises(WeightsError, match=words):
        export_weights(create_model("igpt_nano_8", **changes), "transformers")


@pytest.mark.parametrize("changes", [{"objective": "masked"}, {"bias": True}])
def test_openai_layout_of_other_forms(changes):
    model = create_model("igpt_nano_8", **changes)
    again = create_model("igpt_nano_8", **(changes if "objective" in changes else {}))
    load_weights(again, export_weights(model, "original"))
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_a_painters_weights_start_a_classifier(tmp_path):
    painter = create_model("igpt_nano_8")
    save_folder(tmp_path / "run", painter, card=Card(input_size=(8, 8)))
    model = create_model("igpt_nano_8", tmp_path / "run", num_classes=7)
    assert torch.equal(model.blocks[2].mlp.fc1.weight, painter.blocks[2].mlp.fc1.weight)
    joint = create_model("igpt_nano_8", tmp_path / "run", num_classes=7, joint=True, img_size=10)
    assert torch.equal(joint.pixel_head.weight, painter.pixel_head.weight)
    assert joint.pos_embed.shape[1] == 100


def test_bare_and_strange_models_are_refused(tmp_path):
    bare = transformers.ImageGPTModel(transformers.ImageGPTConfig(n_positions=36, n_embd=48, n_layer=1, n_head=3))
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(WeightsError, match="no output"):
        load_folder(tmp_path / "bare")
    theirs = peer("wide", "ImageGPTForCausalImageModeling")
    theirs.config.activation_function = "relu"
    theirs.save_pretrained(tmp_path / "relu")
    with pytest.raises(WeightsError, match="activation_function"):
        load_folder(tmp_path / "relu")
    with pytest.raises(WeightsError, match="width 32, 34 rows of colours"):
        load_weights(create_model("igpt_nano_8"), theirs.state_dict())
