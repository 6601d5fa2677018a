"""Robots of other projects as `Robot`. Each module takes an object that its project made, and imports no project."""
