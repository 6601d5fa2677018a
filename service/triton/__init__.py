"""Triton's side of the service: what runs inside it, its model repository, its process, the backend that calls it."""
