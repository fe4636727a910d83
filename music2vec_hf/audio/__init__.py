"""Any file to mono blocks at 16 kHz, and where audio lies: listings of folders, manifests, archives and the Hub."""
