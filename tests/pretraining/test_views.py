"""Several masks a crop: equal to one pass for each mask, and cut and drawn as everything else is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_plan import PLAN

from music2vec_hf import EMATeacher
from music2vec_hf.pretraining.monitors import FrameMoments

SEVERAL = replace(PLAN, masks_per_crop=3)


@pytest.mark.parametrize("padded", [False, True])
def test_views_are_separate_passes_averaged(tiny_student, padded):
    """Equal counts, so the mean over all masked frames is the mean of the losses of the passes."""
    teacher = EMATeacher(tiny_student)
    teacher.encoder.layers[0].feed_forward.output_dense.weight.mul_(1.5)
    plan = replace(SEVERAL, num_frames=49, rows_per_update=2, mask_group_rows=2)
    masks = torch.from_numpy(plan.masks(0, [0, 1]))
    input_values = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones(2, 16_000, dtype=torch.long) if padded else None
    if padded:
        attention_mask[1, 15_990:] = 0  # no frame is lost, but the masks of padding are at work
    together = tiny_student(input_values, attention_mask, masks, teacher)
    together.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in tiny_student.named_parameters()}
    tiny_student.zero_grad()
    alone = [tiny_student(input_values, attention_mask, masks[:, view], teacher) for view in range(3)]
    sum(output.loss / 3 for output in alone).backward()

    torch.testing.assert_close(together.loss, sum(output.loss for output in alone) / 3)
    for name, parameter in tiny_student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    per_crop = masks[0, 0].sum()
    first = [output.predictions[:per_crop] for output in alone]
    torch.testing.assert_close(together.predictions[: 3 * per_crop], torch.cat(first), atol=1e-6, rtol=1e-5)


def test_masks_of_a_crop_differ_and_the_first_is_the_only_one_of_a_plan_with_one():
    plan = replace(SEVERAL, require_same_masks=False)
    masks = plan.masks(4, [0, 2])
    assert masks.shape == (2, 3, PLAN.num_frames)
    assert not (masks[0, 0] == masks[0, 1]).all() and not (masks[0, 1] == masks[0, 2]).all()
    np.testing.assert_array_equal(masks[:, 0], replace(PLAN, require_same_masks=False).masks(4, [0, 2]))
    np.testing.assert_array_equal(masks[1], plan.masks(4, [2])[0])  # whatever it is cut into


def test_views_of_one_clip_do_not_pass_for_position():
    """Targets of pure content: a clip's views repeat them, which is not what several clips have in common."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(10, 10, 64, generator=generator)
    masks = torch.rand(10, 4, 10, generator=generator) < 0.5

    class Output:
        projected_features = torch.zeros(10, 10, 64)

    Output.targets = targets.repeat_interleave(4, 0)[masks.flatten(0, 1)]
    Output.predictions = Output.targets
    moments = FrameMoments(10, Output)
    moments.add(Output, masks)
    assert moments.monitors(lambda sums: sums)["position_share"] == pytest.approx(0, abs=0.03)
