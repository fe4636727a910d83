"""Prepared corpora: making, loading, batches, streams, inspection."""
