"""Fine-tune a pretrained model on a labelled corpus: frozen, LoRA, the last layers, or the whole encoder.

    python examples/finetune.py examples/finetune_genre.yaml --mode lora --output_dir genre-lora

The same in Python as `music2vec finetune CONFIG.yaml [--name value ...]`. The YAML file sets any field of
`FinetuneArguments` (docs/finetuning.md); the command line overrides it. `--resume` goes on with a run that was
stopped.
"""

import sys

from music2vec_hf.finetuning.fitting import finetune, parse_arguments


def main() -> None:
    """Train, print the scores of the best epoch, save the model into `output_dir`."""
    try:
        args = parse_arguments(sys.argv[1:])
        results = finetune(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for name, value in results.items():
        print(f"{name:<28}{value:.4f}")
    print(f"The model is in {args.output_dir}.")


if __name__ == "__main__":
    main()
