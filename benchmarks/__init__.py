"""What onepx can bear, measured against nginx on the same machine in the same run: `make bench`."""
