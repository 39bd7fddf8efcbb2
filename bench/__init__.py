"""What modulation costs, measured: `python bench --help`. README.md beside this file says how to read the figures."""
