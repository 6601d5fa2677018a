"""How chunks are played, measured: success and jumps at seams by rule and delay, in lock step or against the clock."""
