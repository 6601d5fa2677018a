"""Other people's servers around a checkpoint of ours, each a program that prints one line of JSON when it is ready."""
