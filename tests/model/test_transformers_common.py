"""transformers' own common tests, run on our classes.

They are not part of its wheel: `make test` fetches the source distribution of the installed version into the virtual
environment, once. Nothing of it is kept in the repository, and without it this module is skipped.
"""

import contextlib
import copy
import importlib
import sys
import types
import unittest
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from music2vec_hf import (
    EMATeacher,
    Music2VecConfig,
    Music2VecFeatureExtractor,
    Music2VecForAudioFrameClassification,
    Music2VecForPreTraining,
    Music2VecForSequenceClassification,
    Music2VecModel,
)

SOURCE = Path(sys.prefix) / "transformers-source" / f"transformers-{transformers.__version__}" / "tests"
if not SOURCE.is_dir():
    pytest.skip(
        f"transformers {transformers.__version__}'s own tests are not here; `make test` fetches them",
        allow_module_level=True,
    )


def upstream(name: str):
    """A module of transformers' tests. What they import from modules that the distribution lacks stands in empty."""
    package = "transformers_tests"
    stand_ins = {
        "": {"__path__": [str(SOURCE)]},
        ".exporters": {"__path__": []},
        ".exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        ".generation": {"__path__": []},
        ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        ".utils": {"__path__": []},
        ".utils.test_configuration_utils": {
            "config_common_kwargs": {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
        },
    }
    for suffix, attributes in stand_ins.items():
        module = sys.modules.setdefault(package + suffix, types.ModuleType(package + suffix))
        vars(module).update(attributes)
    # The tests look for transformers' sources in the folder above them; the installed ones will do.
    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        return importlib.import_module(f"{package}.{name}")


common = upstream("test_modeling_common")
ModelTesterMixin = common.ModelTesterMixin
ConfigTester = upstream("test_configuration_common").ConfigTester
SequenceFeatureExtractionTestMixin = upstream(
    "test_sequence_feature_extraction_common"
).SequenceFeatureExtractionTestMixin


class Music2VecTester:
    """Sizes, a configuration and a batch, as the common tests ask for them."""

    batch_size, num_samples, seq_length = 7, 1_040, 3  # seq_length: frames
    hidden_size, num_hidden_layers, num_attention_heads = 16, 2, 2
    is_training = True
    encoder_seq_length = seq_length

    def get_config(self):
        sizes = {name: getattr(self, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        sizes |= {"num_conv_pos_embeddings": 2, "num_conv_pos_embedding_groups": 2, "conv_dim": [8] * 7}
        return Music2VecConfig(**sizes, intermediate_size=20, layerdrop=0.0)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        input_values = torch.randn(self.batch_size, self.num_samples, generator=generator)
        return self.get_config(), {
            "input_values": input_values,
            "attention_mask": torch.ones_like(input_values).long(),
        }


class TestModels(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        Music2VecModel,
        Music2VecForPreTraining,
        Music2VecForSequenceClassification,
        Music2VecForAudioFrameClassification,
    )
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = Music2VecTester()
        self.config_tester = ConfigTester(self, config_class=Music2VecConfig, has_text_modality=False, hidden_size=16)
        # The tests tell base models and classifiers apart by transformers' own lists of names.
        for names, model_class in (
            ("MODEL_MAPPING_NAMES", Music2VecModel),
            ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", Music2VecForSequenceClassification),
        ):
            listed = mock.patch.dict(getattr(modeling_auto, names), {"music2vec": model_class.__name__})
            listed.start()
            self.addCleanup(listed.stop)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            # Without a mask the embedding of masked frames gets no gradient, which the tests want for every parameter.
            shape = (self.model_tester.batch_size, self.model_tester.seq_length)
            inputs["mask_time_indices"] = torch.zeros(shape, dtype=torch.bool)
            inputs["mask_time_indices"][:, 0] = True
            if model_class is Music2VecForPreTraining:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    inputs["teacher"] = EMATeacher(model_class(self.model_tester.get_config()))
            elif model_class is Music2VecForAudioFrameClassification:
                inputs["labels"] = torch.zeros(shape, dtype=torch.long)
        return inputs

    def test_can_load_ignoring_mismatched_shapes(self):
        # Its initialisation with zeros takes `target_std` for the width of an initialisation.
        with mock.patch.object(common, "_config_zero_init", copy.deepcopy):
            super().test_can_load_ignoring_mismatched_shapes()

    def test_bc_torch_dtype(self):
        # A subtest for each parameter: reporting them takes longer than the test.
        with mock.patch.object(self, "subTest", lambda *names: contextlib.nullcontext()):
            super().test_bc_torch_dtype()

    @unittest.skip("The model reads a waveform: there are no token embeddings.")
    def test_model_get_set_embeddings(self):
        pass


class FeatureExtractorTester:
    """Sizes and clips, as the common tests ask for them."""

    batch_size, feature_size = 7, 1
    min_seq_length, max_seq_length = 400, 2_000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        values = {"feature_size": self.feature_size, "padding_value": 0.0, "sampling_rate": 16_000}
        return values | {"return_attention_mask": True, "do_normalize": True, "norm_eps": 1e-5, "receptive_field": 400}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        generator = torch.Generator().manual_seed(0)
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        lengths = [self.max_seq_length] * self.batch_size if equal_length else lengths
        clips = [torch.rand(length, generator=generator).numpy() for length in lengths]
        return clips if numpify else [clip.tolist() for clip in clips]


class TestFeatureExtractor(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = Music2VecFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester()


# The names of what was imported to be inherited: pytest would collect them by themselves.
del ModelTesterMixin, SequenceFeatureExtractionTestMixin
