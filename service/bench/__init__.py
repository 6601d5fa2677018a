"""What the service costs and what batching brings, measured against the real service in a process of its own."""
