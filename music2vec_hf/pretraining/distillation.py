"""Distillation: in the loop of pretraining a small student learns the layers of a frozen teacher, which may be any
audio encoder, at its own sampling and frame rate.

One linear head for each of the teacher's layers reads the student's last one, as in DistilHuBERT (Chang et al. 2022,
arXiv 2110.01900); or one head predicts the normalised mean of the teacher's top layers, as in pretraining.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.generic import can_return_tuple

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.features.encoders import CONV, Encoder, compile_model, load_encoder
from music2vec_hf.features.windows import wanted_layers
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.modeling_music2vec import Music2VecForPreTraining, Music2VecForPreTrainingOutput, channel_std
from music2vec_hf.pretraining.arguments import Recipe


class FrozenTeacher:
    """An audio encoder that sets targets and does not change. To the loop it is what [`EMATeacher`] is.

    Args:
        encoder ([`Encoder`]): of any type.
        config ([`Music2VecConfig`]): the student's, whose frames the targets are for.
        layers (`Sequence[str]`): names of its layers, each a target of its own; without any the one target is the mean
            of its top layers, each normalised per crop and channel over time.
        top_k (`int`): how many top layers that mean is of.

    Raises:
        ValueError: for a layer that it does not have.
    """

    checkpoint_name = "frozen_teacher.safetensors"

    def __init__(self, encoder: Encoder, config: Music2VecConfig, layers: Sequence[str] = (), top_k: int = 8):
        self.encoder, self.config, self.averages, self._places = encoder, config, not layers, {}
        encoder.model.requires_grad_(False)
        transformer = [name for name in encoder.layers if name not in (CONV, "0")]
        self.layers = encoder.check_layers(layers or transformer[-top_k:])
        with torch.no_grad():
            frames = encoder.frames(torch.zeros(1, encoder.sampling_rate, device=encoder.device))
            widths = {name: states.shape[-1] for name, states in frames}
        self.widths = [widths[name] for name in (self.layers[-1:] if self.averages else self.layers)]

    def to(self, device) -> "FrozenTeacher":
        """Move it to `device`; returns itself."""
        self.encoder.model.to(device)
        return self

    def compile(self) -> "FrozenTeacher":
        """Let torch.compile speed it up; returns itself."""
        compile_model(self.encoder.model, dynamic=False)
        return self

    def decay(self, step: int) -> float:
        """1: it never follows the student."""
        return 1.0

    def update(self, model, step: int) -> float:
        """Does nothing; returns its decay."""
        return 1.0

    @torch.no_grad()
    def targets(self, input_values: torch.Tensor) -> list[torch.Tensor]:
        """What each head of the student has to predict.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised crops at 16 kHz.

        Returns:
            `list[torch.Tensor]`: for each target `[B, T, C]`, float32: the teacher's frames, where the frames of the
            student lie between two of them on the line through both.
        """
        num_samples = input_values.shape[1]
        if not self.encoder.is_ours:  # by its own extractor, which works on the CPU
            rows = (self.encoder.to_samples(row, SAMPLING_RATE) for row in input_values.cpu().numpy())
            rows = np.stack([self.encoder.prepare(row) for row in rows])
            input_values = torch.from_numpy(rows).to(input_values.device)
        frames = wanted_layers(self.layers, self.encoder.frames(input_values))
        found = {name: states.float() for name, states in frames}
        targets = [found[name] for name in self.layers]
        if self.averages:
            targets = [sum(F.instance_norm(states.transpose(1, 2)) for states in targets).transpose(1, 2)]
            targets[0] /= len(self.layers)
        return [self._at_students_frames(states, num_samples) for states in targets]

    def _at_students_frames(self, states: torch.Tensor, num_samples: int) -> torch.Tensor:
        """Frames `[B, T', C]` of the teacher to those `[B, T, C]` of the student, by time."""
        key = states.shape[1], num_samples, states.device
        if key not in self._places:  # kept: each way to a GPU is one that the program would wait for
            self._places[key] = self._find_places(states.shape[1], num_samples).to(states.device)
        places = self._places[key]
        before = places.floor().long()
        after = (before + 1).clamp(max=states.shape[1] - 1)
        return states[:, before].lerp(states[:, after], (places - before)[:, None])

    def _find_places(self, num_frames: int, num_samples: int) -> torch.Tensor:
        """Where the student's frames `[T]` lie among so many of the teacher's."""
        rate = self.encoder.sampling_rate
        times = self.config.frame_times(self.config.num_frames(num_samples))
        if num_frames == self.encoder.front_end.num_frames(round(num_samples * rate / SAMPLING_RATE)):
            theirs = self.encoder.front_end.frame_times(num_frames, rate)
        else:  # its configuration does not tell where its frames lie
            theirs = (np.arange(num_frames) + 0.5) * (num_samples / SAMPLING_RATE / num_frames)
        return torch.from_numpy(np.interp(times, theirs, np.arange(num_frames)).astype(np.float32))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it: the hash of its weights, 32 bytes."""
        return {"hash": torch.tensor(list(bytes.fromhex(self.encoder.hash)), dtype=torch.uint8)}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """ValueError if a checkpoint was made with a teacher of other weights."""
        if bytes(state_dict["hash"].tolist()).hex() != self.encoder.hash:
            raise ValueError(
                f"The teacher {self.encoder.name} has other weights than the one this run began with. Name that one, "
                "or start a new run in another `--output`."
            )


class Music2VecForDistillation(Music2VecForPreTraining):
    """The student of a [`FrozenTeacher`] with its heads, of which nothing remains at the end of the run.

    Args:
        config ([`Music2VecConfig`]): of the student.
        recipe ([`Recipe`]): what the loss is made of (`distill_cosine`, `distill_l1`), and whether the student hears
            crops whole, masked or both (`distill_crops`).
        widths (`Sequence[int]`): channels of each of the teacher's targets.
    """

    def __init__(self, config: Music2VecConfig, recipe: Recipe, widths: Sequence[int]):
        super().__init__(config)
        self.final_proj = None
        self.distillation_heads = nn.ModuleList(nn.Linear(config.hidden_size, width) for width in widths)
        self.crops, self.weights = recipe.distill_crops, (recipe.distill_cosine, recipe.distill_l1)

    @can_return_tuple
    def forward(
        self, input_values, attention_mask=None, mask_time_indices=None, teacher=None, masked_positions=None
    ) -> Music2VecForPreTrainingOutput:
        """Predict the teacher's layers at all frames of whole or masked crops.

        Arguments and result are those of [`Music2VecForPreTraining`]; `attention_mask` is not read: crops have no
        padding. The loss is summed over all frames, and, as there, divided by the number of masked ones; it is the
        mean over heads of the cosine and L1 distances' weighted sum. `predictions` and `targets` are the last head's
        at the masked frames.
        """
        masks = mask_time_indices if mask_time_indices.ndim == 3 else mask_time_indices[:, None]
        whole = torch.zeros_like(masks[:, :1])
        heard = {"whole": whole, "masked": masks, "both": torch.cat([whole, masks], 1)}[self.crops]
        encoded = self.data2vec_audio(
            input_values,
            mask_time_indices=heard,
            output_projected_features=True,
            feature_grad_mult=self.config.feature_grad_mult,
            return_dict=True,
        )
        if masked_positions is None:
            masked_positions = masks.flatten().nonzero(as_tuple=True)[0]
        hidden_states, num_masked = encoded.last_hidden_state, len(masked_positions)
        targets = teacher.targets(input_values)
        by_view = hidden_states.unflatten(0, heard.shape[:2])  # [B, V, T, C]
        predictions = [head(by_view).float() for head in self.distillation_heads]
        distances = [self._distance(*pair) for pair in zip(predictions, targets, strict=True)]
        output = Music2VecForPreTrainingOutput(
            loss=sum(distances) / (len(distances) * num_masked),
            last_hidden_state=hidden_states,
            projected_features=encoded.projected_features.detach(),
        )
        if self.acoustic_head is not None:
            output.acoustic_loss = self._acoustic_loss(input_values, hidden_states, num_masked)
            output.loss = output.loss + self.config.acoustic_weight * output.acoustic_loss
        shown = predictions[-1].detach()[:, -masks.shape[1] :].expand(-1, masks.shape[1], -1, -1)
        output.predictions = shown.flatten(0, 2).index_select(0, masked_positions)
        frames, views = masks.shape[2], masks.shape[1]
        output.targets = targets[-1][masked_positions // (views * frames), masked_positions % frames]
        output.target_std, output.prediction_std = channel_std(output.targets), channel_std(output.predictions)
        return output

    def _distance(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed over frames: of predictions `[B, V, T, C]` from targets `[B, T, C]`."""
        targets, (cosine, l1) = targets[:, None], self.weights
        total = cosine * (1 - F.cosine_similarity(predictions, targets, dim=-1)).sum()
        return total + l1 * (predictions - targets).abs().mean(-1).sum()


def new_distillation(recipe: Recipe) -> tuple[Music2VecForDistillation, FrozenTeacher]:
    """Student and teacher of a distillation that has not begun, on the CPU.

    With `distill_init` each weight of the student whose name and shape the teacher has, too, starts as the teacher's;
    its layers are matched with every k-th of the teacher's, the last with the last.

    Args:
        recipe ([`Recipe`]): torch's generator is seeded by the caller.

    Raises:
        ValueError: if the teacher cannot be loaded, or lacks a layer that the recipe names.
    """
    config = recipe.model_config()
    encoder = load_encoder(recipe.distill_from, trust_remote_code=recipe.distill_trust_remote_code)
    teacher = FrozenTeacher(encoder, config, [str(layer) for layer in recipe.distill_layers], recipe.distill_top_k)
    student = Music2VecForDistillation(config, recipe, teacher.widths)
    if recipe.distill_init:
        copy_matching_weights(encoder.model, student.data2vec_audio)
    return student, teacher


@torch.no_grad()
def copy_matching_weights(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Copy the teacher's weights into the student where name and shape agree, see [`new_distillation`]. Returns the
    student's names of what was copied."""
    theirs, copied = teacher.state_dict(), []
    ours, depth = student.config.num_hidden_layers, getattr(teacher.config, "num_hidden_layers", 0)
    for name, weight in student.state_dict().items():
        source = name
        if name.startswith("encoder.layers."):
            index, _, rest = name.removeprefix("encoder.layers.").partition(".")
            source = f"encoder.layers.{(int(index) + 1) * depth // ours - 1}.{rest}"
        if source in theirs and theirs[source].shape == weight.shape:
            weight.copy_(theirs[source])
            copied.append(name)
    return copied


__all__ = ["FrozenTeacher", "Music2VecForDistillation", "new_distillation"]
