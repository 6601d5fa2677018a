"""One model behind several servers, side by side in one run."""
