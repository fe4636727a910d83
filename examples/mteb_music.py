"""Score a model on music tasks of MTEB, which fetches their data from the Hub; scores are kept and not computed twice.

python examples/mteb_music.py MODEL --tasks BeijingOpera GTZANGenre --layer 6 --output mteb
"""

import argparse

import mteb

from music2vec_hf.features.mteb_encoder import MTEBEncoder

TASKS = (
    "BeijingOpera GTZANGenre MridinghamStroke MridinghamTonic NSynth GTZANGenreClustering MusicGenreClustering "
    "NSynthInstrumentFamilyClustering GTZANAudioReranking"
).split()


def read_arguments() -> argparse.Namespace:
    """What the command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="`tiny`, a folder or a Hub id")
    parser.add_argument("--revision", help="of a Hub id; by default its newest")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help=f"names of tasks; by default {', '.join(TASKS)}")
    parser.add_argument("--layer", help="`conv` or a number; by default the last")
    parser.add_argument("--window-seconds", type=float, default=30.0, help="longest piece heard at once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--output", default="mteb", help="folder of the scores, by model, revision and layer")
    return parser.parse_args()


def main() -> None:
    """Print a line per task: its main score."""
    told = read_arguments()
    settings = {"device": told.device, "layer": told.layer, "window_seconds": told.window_seconds}
    model = MTEBEncoder(told.model, told.revision, **settings)
    print(f"{model.mteb_model_meta.name}, layer {model.layer}")
    done = mteb.evaluate(model, mteb.get_tasks(tasks=told.tasks), cache=mteb.ResultCache(told.output))
    for result in done.task_results:
        print(f"{result.task_name:34}  {result.task.metadata.main_score:12}  {result.get_score():.3f}")


if __name__ == "__main__":
    main()
