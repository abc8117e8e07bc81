"""What tells whether a sample is unusual: pure numpy, bounded state, no I/O."""
