"""robosuite's tasks: one simulation for all arms, their drives and servo, and a scene with its expert for each."""
