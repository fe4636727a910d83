"""Audio in, training batches out: decoding, corpora, crops, and the embedded synthetic corpus."""
