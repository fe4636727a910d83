"""What every wing uses: precision, threads, the Hub's errors."""
