"""React to runs: metrics, notices, and the commits that a run deployed."""
