"""Breaking a running service on purpose, and counting what its robots notice."""
