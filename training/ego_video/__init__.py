"""Video that says nothing of actions: clips from any source in one kind of pack, masks of motion, pairs of frames.

Owns sources, packs and masks. What is learned from them is training/latent_actions' and training/video_prior's.
"""
