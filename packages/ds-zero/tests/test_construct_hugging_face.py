"""Hugging Face models under a recording, from a config and from a folder."""

from __future__ import annotations

import pytest
import torch

from ds_zero.construct import Recording, load_safetensors

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "tied bf16 llama": lambda: transformers.LlamaConfig(**SMALL, dtype="bfloat16", tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4),
}


def build(name):
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())


def assert_equal(model, expected, value_of):
    for (name, parameter), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(value_of(parameter), wanted), name
    for (name, buffer), (_, wanted) in zip(model.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), name


@pytest.mark.parametrize("name", CONFIGS)
def test_from_config_is_bit_equal_to_plain_construction(name):
    torch.manual_seed(3)
    expected, state = build(name), None
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with Recording() as recording:
        model = build(name)
    values = {parameter: value.clone() for parameter, value in recording.replay()}
    assert torch.equal(torch.get_rng_state(), state)
    assert set(values) == set(model.parameters())
    assert_equal(model, expected, values.__getitem__)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(5)
    model = build("tied bf16 llama")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    return model, tmp_path


def test_from_pretrained_hands_over_each_parameter_as_it_is_set(folder):
    expected, path = folder
    values = {}

    def shard(module, name, parameter):
        assert getattr(module, name).is_meta
        assert not any(known.numel() for known in values)  # one at a time
        values[parameter] = parameter.data.clone()
        parameter.data = torch.empty(0)

    with Recording() as recording:
        recording.on_real_parameter(shard)
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert list(recording.replay()) == []
    assert set(values) == set(model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert_equal(model, expected, values.__getitem__)


def test_a_saved_model_is_read_in_ranges(folder):
    expected, path = folder
    shapes = {name: parameter.shape for name, parameter in expected.named_parameters()}
    assert len(list(path.glob("*.safetensors"))) > 1
    for name, reader in load_safetensors(path, shapes, dtype=torch.bfloat16):
        whole = expected.get_parameter(name).detach().flatten()
        third = whole.numel() // 3
        assert torch.equal(torch.cat([reader.read(0, third), reader.read(third)]), whole)
