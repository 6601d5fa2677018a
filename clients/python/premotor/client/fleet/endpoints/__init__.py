"""The wires that a fleet can ask over, behind one protocol."""
