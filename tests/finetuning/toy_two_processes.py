"""Two processes that fine-tune under several settings, one after another: `toy_two_processes.py CORPUS MODEL OUT`."""

import sys

from music2vec_hf.finetuning.arguments import FinetuneArguments
from music2vec_hf.finetuning.fitting import finetune

RUNS = {
    "full": {"mode": "full"},
    "early_layer": {"mode": "lora", "classifier_layer": "1"},
}


def main(corpus, model, out):
    for name, changes in RUNS.items():
        finetune(
            FinetuneArguments(
                model=model,
                corpus=corpus,
                label=["genre"],
                output_dir=f"{out}/{name}",
                crop_seconds=1.0,
                max_steps=2,
                per_device_train_batch_size=2,
                gradient_checkpointing=True,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                **changes,
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
