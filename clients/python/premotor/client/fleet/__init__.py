"""Many simulated robots that ask whether or not answers come: what a served policy is worth to a fleet."""
