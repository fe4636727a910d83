"""The page of `music2vec app` as a Hugging Face Space. Variables of the Space say what hears: MODEL (a name, folder or
Hub id; by default the model that comes with the library) and LIBRARY (a table of `music2vec embed`, or none)."""

import os

from music2vec_hf.app import serve
from music2vec_hf.app_listener import Limits, Listener
from music2vec_hf.common.weights import model_source

listener = Listener(
    model_source(os.environ.get("MODEL", "tiny")),
    library=os.environ.get("LIBRARY"),
    limits=Limits(max_megabytes=50, max_minutes=10),
    device="auto",
)

if __name__ == "__main__":
    serve(listener, host="0.0.0.0", port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
