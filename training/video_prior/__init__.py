"""A policy's way from video to a checkpoint (paper B, arXiv 2606.18955, stages 2 and 3).

Owns the recipe of the whole chain, intent pretraining on codes of clips, adaptation to robots, the joint motion latent
that paper A's model can learn from clips instead, and the verb `video-prior`. Eyes and codes are
training/latent_actions', clips training/ego_video's.
"""
