"""Recipes: each row of the paper's Table 1, written by hand, and each mistake with its sentence."""

import pytest

from music2vec_hf import load_recipe
from music2vec_hf.pretraining.arguments import Recipe, recipe_names, recipe_title

# crop (s), crops per step, mask span, probability, top K, steps: METHOD sections 8 and 9.
PAPER = {
    "base30s": (30, 112, 10, 0.65, 8, 400_000),
    "crop5s": (5, 752, 10, 0.65, 8, 400_000),
    "crop10s": (10, 368, 10, 0.65, 8, 400_000),
    "crop15s": (15, 240, 10, 0.65, 8, 400_000),
    "span5": (30, 112, 5, 0.65, 8, 400_000),
    "span15": (30, 112, 15, 0.65, 8, 400_000),
    "prob50": (30, 112, 10, 0.50, 8, 400_000),
    "prob70": (30, 112, 10, 0.70, 8, 400_000),
    "prob80": (30, 112, 10, 0.80, 8, 400_000),
    "target12": (30, 112, 10, 0.65, 12, 400_000),
    "steps800k": (30, 112, 10, 0.65, 8, 800_000),
    "crop5s_target12": (5, 752, 10, 0.65, 12, 400_000),
}
# Rows of one forward of 3.8 M samples, over which the reference equalises the masked counts.
MASK_GROUPS = {5: 47, 10: 23, 15: 15, 30: 7}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_has_the_papers_values(name):
    recipe = load_recipe(name)
    crop, rows, span, prob, top_k, steps = PAPER[name]
    assert (recipe.crop_seconds, recipe.rows_per_update, recipe.mask_time_length) == (crop, rows, span)
    assert (recipe.mask_time_prob, recipe.average_top_k_layers, recipe.max_steps) == (prob, top_k, steps)
    assert recipe.mask_group_rows == MASK_GROUPS[crop]
    assert (recipe.learning_rate, recipe.adam_betas, recipe.adam_epsilon) == (5e-4, [0.9, 0.98], 1e-6)
    assert (recipe.weight_decay, recipe.max_grad_norm, recipe.phase_ratio) == (0.01, 0.0, [0.03, 0.9, 0.07])
    config = recipe.model_config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.conv_dim, config.activation_dropout) == ([512] * 7, 0.0)
    assert (config.hidden_dropout, config.attention_dropout, config.layerdrop) == (0.1, 0.1, 0.05)
    assert (config.ema_decay, config.ema_end_decay, config.ema_anneal_end_step) == (0.999, 0.9999, 30_000)


def test_every_recipe_resolves_and_says_what_it_is():
    assert set(PAPER) | {"demo", "small", "tiny", "tiny_half"} == set(recipe_names())
    for name in recipe_names():
        assert isinstance(load_recipe(name), Recipe)
        assert recipe_title(name).endswith(".") or len(recipe_title(name)) > 20
    assert load_recipe("crop5s") == Recipe()
    numbers = load_recipe("crop5s", learning_rate="1e-3", max_steps="1e5")  # as YAML reads them
    assert (numbers.learning_rate, numbers.max_steps) == (1e-3, 100_000)
    assert load_recipe("small", distill_layers=9).distill_layers == [9]


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"mask_time_lenght": 5}, "unknown key `mask_time_lenght` \\(value 5\\). Did you mean `mask_time_length`"),
        ({"wibble": 1}, "unknown key `wibble`.*Allowed are"),
        ({"crop_seconds": -1}, "`crop_seconds` is -1.0. Use a value from 0.1 to 600.0"),
        ({"crop_seconds": 0.2}, "`mask_time_length` is 10 frames but a crop of 0.2 s has only 9"),
        ({"max_steps": 1.5}, "`max_steps` is 1.5. Use a value of type int"),
        ({"max_steps": "many"}, "`max_steps` is 'many'"),
        ({"require_same_masks": 1}, "`require_same_masks` is 1. Use a value of type bool"),
        ({"gradient_checkpointing": "yes"}, "`gradient_checkpointing` is 'yes'. Use a value of type bool"),
        ({"gradient_compression": "int8"}, "`gradient_compression` is 'int8'. Use one of none, bf16"),
        ({"precision": "int4"}, "`precision` is 'int4'. Use one of fp32, tf32, bf16"),
        ({"phase_ratio": [0.5, 0.6, 0.1]}, "three shares from 0 to 1 that add up to 1"),
        ({"masks_per_crop": 0}, r"`masks_per_crop` is 0\. Use a value from 1"),
        ({"crops_per_clip": 0}, "`crops_per_clip` is 0. Use a value from 1"),
        ({"mix_prob": 1.1}, "`mix_prob` is 1.1. Use a value from 0.0 to 1.0"),
        ({"mix_snr_db": [10, 0]}, "`mix_snr_db` is \\[10.0, 0.0\\]. Use two values in dB, the lower one first"),
        ({"max_seconds_per_device": "fast"}, "`max_seconds_per_device` is 'fast'. Use a number or `auto`"),
        ({"mask_time_prob": 0}, "`mask_time_prob` is 0, but the loss is that of masked frames"),
        ({"mask_dropout": 0.96}, "`mask_dropout` is 0.96, which can show all 10 frames of a span again"),
        ({"batch_seconds": 3}, "`batch_seconds` is 3.0 but one crop has 5.0 s"),
        ({"hidden_size": "wide"}, "`hidden_size` is 'wide'. Use a value of type int"),
        ({"conv_dim": 8}, "`conv_dim` is 8"),
        ({"adam_betas": [0.9, 1.0]}, "`adam_betas` is \\[0.9, 1.0\\]"),
        ({"average_top_k_layers": 13}, "`average_top_k_layers` is 13"),
        ({"mask_time_prob": 1.5}, "`mask_time_prob` is 1.5"),
        ({"hidden_size": 0}, "`hidden_size` is 0. Use a value of at least 1"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0. Use a value of at least 1"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "`conv_stride` is .*. Use values of at least 1"),
    ],
)
def test_a_mistake_is_refused_with_key_value_and_range(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_recipe("crop5s", **values)


def test_unknown_recipes_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no recipe 'crop6s'. Use one of base30s, crop10s"):
        load_recipe("crop6s")
    with pytest.raises(ValueError, match="There is no recipe file"):
        load_recipe(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("- a list\n")
    with pytest.raises(ValueError, match="holds a list"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_file_of_differences_and_what_a_resolved_recipe_prints_are_recipes(tmp_path):
    mine = tmp_path / "mine.yaml"
    for text in ("mask_time_length: 5\ncrop_seconds: 3\n", "model:\n  mask_time_length: 5\ncrop_seconds: 3\n"):
        mine.write_text(text)
        recipe = load_recipe(mine)
        assert (recipe.mask_time_length, recipe.model.mask_time_length, recipe.crop_seconds) == (5, 5, 3.0)
    mine.write_text(recipe.to_yaml())
    assert load_recipe(mine) == recipe and {"mask_time_length", "crop_seconds"} <= set(recipe.to_dict())
