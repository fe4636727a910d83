"""Configuration: the paper's values, round trips, and each bad setting with its sentence."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, Data2VecAudioConfig

from music2vec_hf import Music2VecConfig
from music2vec_hf.model.configuration_music2vec import custom_pipelines


@pytest.mark.parametrize("seconds, frames", [(5, 249), (10, 499), (15, 749), (20, 999), (30, 1499)])
def test_frames_of_a_crop(seconds, frames):
    config = Music2VecConfig()
    assert config.num_frames(seconds * 16_000) == frames
    assert (config.receptive_field, config.num_frames(400), config.num_frames(399)) == (400, 1, 0)


def test_a_saved_configuration_equals_the_reloaded_one(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is Music2VecConfig
    # Where it was loaded from is all that may differ, and the class that saved it.
    assert {**reloaded.to_dict(), "_name_or_path": ""} == tiny_config.to_dict()


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ({"average_top_k_layers": 13}, "`average_top_k_layers` is 13 but the encoder has 12 layers"),
        ({"mask_time_prob": 1.5}, "`mask_time_prob` is 1.5. Use a value from 0 to 1"),
        ({"mask_time_length": 0}, "`mask_time_length` is 0. Use a value of at least 1"),
        ({"loss_beta": -1.0}, "`loss_beta` is -1.0. It may not be negative"),
        ({"acoustic_weight": -0.5}, "`acoustic_weight` is -0.5. It may not be negative"),
        ({"frontend_init": "mel"}, "'random', 'log_frequency'"),
        ({"classifier_layer": 13}, "`classifier_layer` is 13. Use a layer from 0 to 12"),
        ({"frame_events": "notes"}, "`frame_events` is 'notes'. Use 'beats', 'chords', 'melody' or None"),
        ({"classifier_layer": "last"}, "'weighted' or 'conv'"),
        ({"classifier_pooling": "max"}, "`classifier_pooling` is 'max'"),
        ({"conv_dim": [512] * 6}, "len"),
        ({"hidden_size": 768.0}, "hidden_size"),
    ],
)
def test_a_bad_setting_is_refused(setting, sentence):
    with pytest.raises((StrictDataclassClassValidationError, StrictDataclassFieldValidationError), match=sentence):
        Music2VecConfig(**setting)


def test_a_shallow_foreign_checkpoint_needs_no_top_k(tmp_path):
    Data2VecAudioConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    assert Music2VecConfig.from_pretrained(tmp_path).average_top_k_layers == 4


def test_the_published_config_with_a_path_in_vocab_size_loads(tmp_path):
    values = Data2VecAudioConfig().to_dict() | {"vocab_size": "/somewhere/config.json"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(Exception, match="vocab_size"):
        Data2VecAudioConfig.from_pretrained(tmp_path)
    config = Music2VecConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.layerdrop, config.vocab_size) == ("music2vec", 0.1, 32)


@pytest.mark.parametrize(
    ("architecture", "frame_events", "served_by"),
    [
        ("Music2VecForSequenceClassification", None, ["AutoModelForAudioClassification"]),
        ("Music2VecForAudioFrameClassification", "beats", ["AutoModelForAudioFrameClassification"]),
        ("Music2VecForAudioFrameClassification", None, None),
        ("Music2VecModel", None, None),
    ],
)
def test_the_pipeline_is_named_where_it_serves_the_head(architecture, frame_events, served_by):
    found = custom_pipelines([architecture], frame_events)
    assert (found and found["audio-classification"]["pt"]) == served_by
