"""Fine-tuning on a labelled corpus with transformers' `Trainer`: frozen, LoRA, the last layers, or the whole model."""
