"""Latent actions from video (paper B, stage 1): frozen eyes, the hybrid disentangled VQ-VAE, labels and probes.

Owns what turns two frames into codes of what moved by its own and codes of the rest. Clips and masks are ego_video's,
policies that learn from the codes video_prior's.
"""
