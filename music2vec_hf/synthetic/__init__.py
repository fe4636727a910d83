"""The embedded synthetic corpus."""
