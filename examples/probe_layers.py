"""Probe every layer of a model on a task, and draw the curve of validation scores over layers.

python examples/probe_layers.py MODEL synthetic-genre DATA OUTPUT
"""

import sys

from music2vec_hf.common.files import read_results
from music2vec_hf.probing.suite import run_suite


def main(model: str, task: str, data: str, output: str) -> None:
    """Print a bar for each layer, and the test score of the layer that validation chose."""
    run_suite({"model": model}, task, data, output, seeds=(0,))
    record = next(record for record in read_results(output)["records"] if record["source"] == "model")
    for layer, score in record["validation_by_layer"].items():
        print(f"layer {layer:>4}  {score:6.3f}  {'#' * round(50 * max(0.0, score))}")
    print(f"Chosen on validation: layer {record['layer']}; {record['metric']} on test {record['value']:.3f}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
